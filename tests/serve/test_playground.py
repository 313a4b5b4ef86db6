"""The playground as people use it: in a headless browser, before a server on a tiny model."""

import asyncio
import re
from contextlib import ExitStack
from urllib.parse import urlencode

import httpx
import pytest
from live import live, tea_model

from alignvec import AlignmentVector, KnobModel
from alignvec.errors import AlignvecError
from alignvec.serve.engine import Busy
from alignvec.serve.keys import Keys
from alignvec.serve.playground.client import Client, Trouble
from alignvec.serve.playground.dials import Told, link, read_link
from alignvec.serve.playground.site import mount, serving
from conftest import refused, run


@pytest.fixture(scope="module")
def model(tiny, nudged):
    return tea_model(tiny(), nudged())


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with live(model, tmp_path_factory.mktemp("server")) as here:
        yield here


@pytest.fixture(scope="module")
def page(server):
    with serving(server.url, "127.0.0.1", 0) as address:
        yield address


class Person:
    """Somebody at the page."""

    def __init__(self, driver, address, width=1280, height=860, dark=False):
        self.driver = driver
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.get(address)
        self.open("#sampling")
        box = self.find("#tokens input[type=number]")
        box.clear()
        box.send_keys("16\t")

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def find(self, css):
        self.until(lambda: self.all(css) and self.all(css)[0].is_displayed(), css)
        return self.all(css)[0]

    def until(self, true, what=""):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        ignored = (StaleElementReferenceException, IndexError)
        wait = WebDriverWait(self.driver, 40, 0.05, ignored)
        wait.until(lambda _: true(), what)

    def click(self, css):
        self.find(css).click()

    def open(self, css):
        """Open a part that is folded; a click is lost while the page is still being made."""

        def is_open():
            heading = self.find(f"{css} button")
            if "open" not in heading.get_attribute("class").split():
                heading.click()
            return "open" in heading.get_attribute("class").split()

        self.until(is_open, css)

    def field(self, name):
        return self.find(f"#{name} textarea, #{name} input")

    def told(self, text):
        """Wait until the page says this."""
        self.until(lambda: text in self.find("#status p").text, text)

    @property
    def strength(self):
        return self.find(".dial input[type=number]").get_attribute("value")

    def turn_to(self, strength):
        self.find(f'.levels [data-strength="{strength}"]').click()
        self.until(lambda: self.strength == str(strength))

    def ask(self, question, count=2):
        """The texts of the answers to it."""
        done = len(self.answers)
        self.field("question").send_keys(question + "\n")
        self.until(lambda: len(self.answers) == done + count, "answers")
        return self.answers[done:]

    @property
    def answers(self):
        """What is finished of the tab that is shown: (setting, text, note)."""
        return [
            tuple(one.find_element("css selector", f".{part}").text for part in PARTS)
            for one in self.all(".answer[data-state=done]")
            if one.is_displayed()
        ]


PARTS = ("setting", "text", "note")


def test_a_knob_turns_the_answer(browser, page):
    """The slider by keys, two columns under one seed, another seed, another turn."""
    from selenium.webdriver.common.keys import Keys as Press

    ada = Person(browser(), page)
    assert ada.find(".dial p").text == "Safe: −1.5 to 1.5"
    assert [b.text for b in ada.all(".levels button")] == ["plain", "base", "fine"]
    same = ada.ask("how long does tea steep?")
    assert same[0][1] == same[1][1] != ""
    assert [setting for setting, *_ in same] == ["base", "base"]
    assert re.search(r"first after \d+\.\d\d s · \d+ tokens?$", same[0][2])
    ada.click("#clear")
    ada.until(lambda: not ada.answers)

    slider = ada.find(".dial input[type=range]")
    slider.send_keys(Press.END)
    assert "Beyond the safe range, −1.5 to 1.5" in ada.find(".dial p").text
    assert float(ada.strength) > 1.5
    ada.turn_to(1)
    slider.send_keys(Press.LEFT, Press.LEFT)
    assert ada.strength == "0.9"
    turned = ada.ask("how long does tea steep?")
    assert [setting for setting, *_ in turned] == ["tea 0.9", "base"]
    assert turned[1][1] == same[1][1]
    assert turned[0][1] != turned[1][1]


def test_a_profile_is_saved_loaded_shared_and_not_overwritten(browser, page, server):
    ada = Person(browser(), page)
    ada.turn_to(1)
    ada.open("#profiles")
    ada.field("name").send_keys("clinic-staff")
    ada.click("#save")
    ada.told("Saved as 'clinic-staff'.")
    saved = server.http.get("/v1/profiles/clinic-staff").json()
    assert saved["knobs"] == {"tea": 1.0}
    ada.click("#share")
    ada.until(lambda: ada.field("link").get_attribute("value").startswith("http"))
    link = ada.field("link").get_attribute("value")
    assert link == f"{page}/?profile=clinic-staff"

    bob = Person(browser(), link)
    bob.until(lambda: bob.strength == "1")
    bob.turn_to(-1)
    bob.open("#profiles")
    bob.click("#save")
    bob.told("Saved")
    ada.turn_to(0)
    ada.click("#save")
    ada.told("There is another 'clinic-staff' than you have seen")
    assert server.http.get("/v1/profiles/clinic-staff").json()["knobs"] == {"tea": -1.0}
    ada.click("#load")
    ada.until(lambda: ada.strength == "-1")
    ada.click("#delete")
    ada.told("Deleted")
    assert server.http.get("/v1/profiles").json()["data"] == []

    bob.driver.get(f"{page}/?knobs=tea=fine")
    bob.until(lambda: bob.strength == "1")
    for wrong, said in (("profile=nobody", "no profile 'nobody'"), ("knobs=@/etc/passwd", "is no")):
        bob.driver.get(f"{page}/?{wrong}")
        bob.told(said)
        assert bob.strength == "0"


def test_a_sweep_and_a_phone(browser, page):
    ada = Person(browser(), page, 390, 844, dark=True)
    ada.turn_to(-1)
    ada.ask("how long does tea steep?")
    wide = "return document.documentElement.scrollWidth"
    assert ada.driver.execute_script(wide) <= 390
    columns = [one.rect for one in ada.all(".answer")]
    assert columns[0]["x"] == columns[1]["x"]
    assert columns[1]["y"] > columns[0]["y"]
    next(tab for tab in ada.all("button[role=tab]") if tab.text == "Sweep").click()
    ada.field("sweep-question").send_keys("how long does tea steep?\n")
    ada.until(lambda: len(ada.answers) == 5)
    settings = [setting for setting, *_ in ada.answers]
    assert settings == ["tea −1.5", "tea −0.75", "base", "tea 0.75", "tea 1.5"]
    assert len({text for _, text, _ in ada.answers}) > 2
    assert any("tokens/s" in note for *_, note in ada.answers)
    assert ada.driver.execute_script(wide) <= 390


async def full(_):
    raise Busy(7)
    yield  # an iterator


def test_no_key_a_full_server_and_none_lose_nothing(browser, model, tmp_path, monkeypatch):
    keys = Keys(tmp_path / "keys.sqlite")
    key = keys.add("ada")
    with ExitStack() as until_gone:
        here = until_gone.enter_context(live(model, tmp_path, keys=keys))
        with serving(here.url, "127.0.0.1", 0) as address:
            ada = Person(browser(), address)
            ada.told("wants an API key")
            ada.field("key").send_keys("wrong\n")
            ada.told("does not take this API key")
            ada.field("key").clear()
            ada.field("key").send_keys(key + "\n")
            ada.turn_to(1)
            with monkeypatch.context() as patch:
                patch.setattr(here.engine, "generate", full)
                ada.field("question").send_keys("and now?\n")
                ada.told("The server has all hands full. Try again in 7 s.")
                ada.until(lambda: ada.field("question").get_attribute("value") == "and now?")
            ada.click("#compare input")
            assert ada.ask("", 1)[0][0] == "tea 1"
            until_gone.close()
            ada.field("question").send_keys("still there?\n")
            ada.told("The server does not answer")
            ada.until(lambda: ada.field("question").get_attribute("value") == "still there?")
            assert "and now?" in [one.text for one in ada.all(".question")]
            assert ada.strength == "1"
            assert ada.find("#retry").is_displayed()


def test_nothing_gives_a_file(page, server, model, tmp_path):
    """Neither Gradio's routes for files nor a file as the value of a part of the page."""
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    with httpx.Client(base_url=page, timeout=30) as web:
        routes = ("gradio_api/file=", "file=", "gradio_api/file/", "gradio_api/proxy=", "static/..",
                  "assets/../../../../../..")  # fmt: skip
        for route in routes:
            for place in (secret, "/etc/passwd", f"{server.url}/health"):
                assert web.get(f"/{route}{place}").status_code in (403, 404), (route, place)
        upload = web.post("/gradio_api/upload", files={"files": b"x"})
        assert upload.status_code in (404, 405)
        parts = web.get("/config").json()["dependencies"]
        assert parts
        for part in parts:
            body = {"fn_index": part["id"], "session_hash": "abc", "data": [file] * 12}
            body["data"] = body["data"][: len(part["inputs"])]
            web.post("/gradio_api/queue/join", json=body)
        said = ""
        with web.stream("GET", "/gradio_api/queue/data?session_hash=abc") as stream:
            for line in stream.iter_lines():
                said += line
                if "close_stream" in line:
                    break
    assert "process_completed" in said
    assert "a secret" not in said
    assert "/file=" not in said


def test_it_is_mounted_below_the_api(model, tmp_path):
    with live(model, tmp_path, page=lambda app: mount(app, "http://127.0.0.1:9")) as here:
        assert "gradio" in here.http.get("/").text
        assert here.http.get("/v1/knobs").json()["data"][0]["name"] == "tea"
        assert here.http.get("/v1/chat/completions").status_code == 405
        assert here.http.get("/gradio_api/app_id").status_code == 200  # an open page looks for it
        assert here.http.get("/none").json()["error"]["message"] == "GET /none: Not Found"
        other = httpx.get(f"{here.url}/", headers={"Host": "evil.example"})
        assert other.status_code == 403


@pytest.mark.parametrize(
    "body",
    [
        {"json": {"data": [], "fn_index": 10**9, "session_hash": "abc"}},
        {"content": b"\xff"},
        {"content": b"{", "headers": {"Content-Type": "application/json"}},
    ],
)
def test_what_no_page_sends_is_refused_and_no_fault(page, body):
    said = httpx.post(f"{page}/gradio_api/queue/join", **body)
    assert (said.status_code, said.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_knob_may_be_called_anything(browser, tiny, nudged, tmp_path):
    """Also by Gradio's word for a file, by another knob's address in JavaScript, and by HTML."""
    html = "<img src=x onerror=\"document.title='hit'\">${document.title='hit'}"
    names = ["meta", "path", "constructor", "thé vert", html]
    vector = AlignmentVector.extract(tiny(), nudged())
    knobs = KnobModel.from_pretrained(tiny(), dict.fromkeys(names, vector), "float32", mode="gate")
    with ExitStack() as until_gone:
        here = until_gone.enter_context(live(knobs, tmp_path))
        page = until_gone.enter_context(serving(here.url, "127.0.0.1", 0))
        ada = Person(browser(), page)
        ada.until(lambda: [one.text for one in ada.all(".dial label")] == names, "the knobs")
        assert "Not calibrated" in ada.find(".dial p").text
        for box in ada.all(".dial input[type=number]"):
            box.clear()
            box.send_keys("0.1\t")
        assert ada.find("[data-side=right] small").text == "base"
        left, right = ada.ask("how long does tea steep?")
        assert left[0] == " · ".join(f"{name} 0.1" for name in names)
        assert right[0] == "base"
        assert left[1]
        for wrong, said in (
            ({"knobs": "meta=nan"}, "is no finite number"),
            ({"knobs": html}, "unknown knob '<img src'"),
            ({"profile": html}, "The link leads nowhere"),
        ):
            ada.driver.get(f"{page}/?{urlencode(wrong)}")
            ada.told(said)
        assert ada.driver.title == "alignvec playground"
        assert not ada.all("img[src=x]")
        phone = Person(ada.driver, page, 390, 844)
        next(tab for tab in phone.all("button[role=tab]") if tab.text == "Sweep").click()
        for end in ("#low", "#high"):  # however many knobs there are
            place = phone.find(end).rect
            assert place["x"] + place["width"] <= 390


def test_what_nobody_here_has_seen_is_not_overwritten(browser, page, server):
    tea = server.http.put("/v1/profiles/tea", json={"knobs": {"tea": "fine"}})
    ada = Person(browser(), page)
    ada.open("#profiles")
    ada.field("name").send_keys("tea")
    for button in ("#save", "#delete"):
        ada.click(button)
        ada.told("load it first")
    ada.click("#load")
    ada.until(lambda: ada.strength == "1")
    # Somebody takes it away: the name is free for who has noticed that.
    server.http.delete("/v1/profiles/tea", headers={"If-Match": tea.headers["ETag"]})
    ada.turn_to(-1)
    ada.click("#save")
    ada.told("load it first")
    ada.click("#load")
    ada.told("there is no profile 'tea'")
    ada.click("#save")
    ada.told("Saved as 'tea'.")
    ada.click("#delete")
    ada.told("Deleted")


def test_links():
    assert read_link("?knobs=tea=0.5,ale=fine") == (None, {"tea": 0.5, "ale": "fine"})
    assert read_link(link({"tea": -0.25, "ale": 0.0})) == (None, {"tea": -0.25})
    assert read_link("?profile=a%20b") == ("a b", None)
    assert read_link("") == (None, None)
    measured = {"strengths": [-1, 1], "top": [0, 1], "position": [0, 1], "queries": 3}
    told = Told(name="tea", levels={"low": -1, "high": 1}, safe=(-1, 1), calibration=measured)
    assert told.strength("75%") == told.strength("7.5/10") == 0.5
    with pytest.raises(AlignvecError, match="is no strength"):
        told.strength("sideways")
    with pytest.raises(AlignvecError, match="no units"):
        Told(name="tea").strength("high")
    for wrong in ("nan", "-inf", "1e999"):
        with pytest.raises(AlignvecError, match="no finite number"):
            told.strength(wrong)
    assert read_link("?" + "&" * 3000) == (None, None)
    with pytest.raises(AlignvecError, match="too long"):
        read_link("?" + "&" * 4000)


@pytest.mark.parametrize("reach", [0.02, 0.3, 1, 9, 500])
def test_a_slider_reaches_what_is_known_in_steps_that_hit_the_base(reach):
    knob = Told(name="tea", levels={"plain": -reach, "fine": reach}).knob()
    assert knob.low < -reach < reach < knob.high
    assert 20 <= (knob.high - knob.low) / knob.step <= 400
    assert (knob.low / knob.step) == pytest.approx(round(knob.low / knob.step))


def test_the_command(monkeypatch):
    started = []
    monkeypatch.setattr("alignvec.cli.playground._serve", lambda *given: started.append(given))
    monkeypatch.setenv("A_KEY", "secret")
    run("playground", "--url", "http://127.0.0.1:1", "--api-key-env", "A_KEY")
    assert started == [("http://127.0.0.1:1", "127.0.0.1", 7860, "secret", False)]
    monkeypatch.undo()
    assert "--insecure serves everybody" in refused("playground", "--host", "0.0.0.0")
    assert "the environment has no 'NONE'" in refused("playground", "--api-key-env", "NONE")
    for wrong in ("", "file:///etc/passwd", "127.0.0.1:8000", "http://"):
        with pytest.raises(AlignvecError, match="is no address"):
            Client(wrong)
    with pytest.raises(Trouble, match="does not answer"):
        asyncio.run(Client("http://127.0.0.1:9").knobs())
