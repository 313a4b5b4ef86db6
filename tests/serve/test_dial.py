"""What a request asks of the knobs becomes a setting or is refused in words, and nothing else."""

import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignvec.base.identity import BaseId
from alignvec.errors import AlignvecError
from alignvec.knobs.calibration import trained_calibration
from alignvec.serve.dial import Dial, Turned
from alignvec.serve.errors import Refused, error_body
from alignvec.serve.profiles import Profiles
from alignvec.vector.alignment_vector import AlignmentVector

BASE = BaseId("base", "")
LINE = trained_calibration({"avoidance": -1.0, "generic": 0.5, "expert": 1.0}).model_dump()
MEASURED = LINE | {
    "queries": 20,
    "strengths": [-1.0, 0.0, 1.0],
    "top": [0.0, 0.5, 1.0],
    "position": [0.0, 0.5, 1.0],
}
VECTORS = {
    "medical": AlignmentVector({}, BASE, training={"domain": "health"}, calibration=MEASURED),
    "legal": AlignmentVector({}, BASE, calibration=LINE),
    "plain": AlignmentVector({}, BASE),
}
ZERO = dict.fromkeys(VECTORS, 0.0)


@pytest.fixture
def profiles(tmp_path):
    return Profiles(tmp_path / "state.sqlite")


@pytest.fixture
def dial(profiles):
    profiles.put("clinic", {"medical": "expert", "legal": -0.5})
    return Dial("embedded", VECTORS, profiles, {"plain": 0.25})


@pytest.mark.parametrize(
    ("model", "knobs", "profile", "setting"),
    [
        (None, None, None, {"plain": 0.25}),
        ("embedded", None, None, {"plain": 0.25}),
        ("embedded", {}, None, {}),
        ("embedded", {"medical": 0.7}, None, {"medical": 0.7}),
        ("embedded", {"medical": "0.7", "legal": "expert"}, None, {"medical": 0.7, "legal": 1}),
        ("embedded", {"medical": "75%", "legal": "10/10"}, None, {"medical": 0.5, "legal": 1}),
        ("embedded:medical=0.7,legal=expert", None, None, {"medical": 0.7, "legal": 1}),
        ("embedded:medical=7/10", {"legal": 0.25}, None, {"medical": 0.4, "legal": 0.25}),
        ("embedded", None, "clinic", {"medical": 1, "legal": -0.5}),
        ("embedded", {"legal": 0}, "clinic", {"medical": 1}),
        ("embedded:legal=generic", {"plain": 2}, "clinic",
         {"medical": 1, "legal": 0.5, "plain": 2}),
        ("embedded", {"medical": 1 / 3, "plain": -1e-9}, None, {"medical": 0.3333}),
    ],
)  # fmt: skip
def test_a_request_becomes_a_setting(dial, model, knobs, profile, setting):
    turned = dial.read(model, knobs, profile, "")
    assert turned.setting == {**ZERO, **setting}
    assert turned.profile == profile
    assert all(math.copysign(1, s) == 1 for s in turned.setting.values() if s == 0)


@pytest.mark.parametrize(
    ("model", "knobs", "profile", "status", "code", "param", "words"),
    [
        ("gpt-4", None, None, 404, "model_not_found", "model", "'embedded:medical=0.7'"),
        ("embedde", {"medical": 1}, None, 404, "model_not_found", "model", "ask for 'embedded'"),
        ("embedded:", None, None, 400, "invalid_knobs", "model", "write KNOB=STRENGTH"),
        ("embedded:medical=1,medical=2", None, None, 400, "invalid_knobs", "model", "twice"),
        ("embedded:medcal=1", None, None, 400, "unknown_knob", "model", "did you mean 'medical'?"),
        ("embedded:legal=1", {"legal": 1}, None, 400, "knob_twice", "knobs", "'legal'"),
        (None, {"x": 1}, None, 400, "unknown_knob", "knobs", "one of legal, medical, plain"),
        (None, {"x" * 10**6: 1}, None, 400, "unknown_knob", "knobs", "legal, medical, plain"),
        (None, {"\ud800\x1b[31m": 1}, None, 400, "unknown_knob", "knobs", "legal, medical"),
        (None, [["medical", 1]], None, 400, "invalid_knobs", "knobs", '{"medical": 0.7}'),
        (None, "medical=1", None, 400, "invalid_knobs", "knobs", "is an object"),
        (None, True, None, 400, "invalid_knobs", "knobs", "is an object"),
        (None, {"medical": True}, None, 400, "invalid_strength", "knobs", "is a number"),
        (None, {"medical": None}, None, 400, "invalid_strength", "knobs", "is a number"),
        (None, {"medical": [1]}, None, 400, "invalid_strength", "knobs", "is a number"),
        (None, {"medical": " " * 99}, None, 400, "invalid_strength", "knobs", "short text"),
        (None, {"medical": math.nan}, None, 400, "invalid_strength", "knobs", "not a finite"),
        (None, {"medical": -math.inf}, None, 400, "invalid_strength", "knobs", "not a finite"),
        (None, {"medical": "nan"}, None, 400, "invalid_strength", "knobs", "not a finite"),
        (None, {"medical": 1e39}, None, 400, "invalid_strength", "knobs", "not a finite"),
        (None, {"medical": 10**9999}, None, 400, "invalid_strength", "knobs", "not a finite"),
        (None, {"legal": "80%"}, None, 400, "invalid_strength", "knobs", "was not measured"),
        (None, {"medical": "101%"}, None, 400, "invalid_strength", "knobs", "from 0% to 100%"),
        (None, {"plain": "expert"}, None, 400, "invalid_strength", "knobs", "give a number"),
        (None, {"legal": "guru"}, None, 400, "invalid_strength", "knobs", "avoidance, generic"),
        (None, None, "clinics", 400, "unknown_profile", "profile", "did you mean 'clinic'?"),
        (None, None, "../x", 400, "unknown_profile", "profile", "one of clinic"),
        (None, None, {"a": 1}, 400, "invalid_value", "profile", "the name of one"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_what_is_known(
    dial, model, knobs, profile, status, code, param, words
):
    with pytest.raises(Refused) as caught:
        dial.read(model, knobs, profile, "")
    said = caught.value
    assert (said.status, said.code, said.param) == (status, code, param)
    told = error_body(str(said), said.status, said.code, said.param)["error"]["message"]
    assert words in told
    assert told.isprintable()
    assert len(told) <= 1000


def test_no_file_is_read_whatever_a_request_names(dial, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.json").write_text('{"medical": 1}')
    for ask in (
        ("embedded:@s.json", None, None),
        ("embedded", "@s.json", None),
        ("embedded", {"medical": "@s.json"}, None),
        ("embedded", {"@s.json": 1}, None),
        ("embedded", None, "@s.json"),
        ("@s.json", None, None),
    ):
        with pytest.raises(Refused):
            dial.read(*ask, "")


text = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["medical", "legal", "plain", "expert", "80%", "7/10", "@/etc/passwd", "nan",
                     "embedded:", "clinic", "\ud800", "1e400", "-%", "/10", "٣"]),
)  # fmt: skip
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
strength = st.one_of(junk, st.floats(-2, 2), st.sampled_from(["expert", "50%", "5/10"]))
knobs = st.one_of(st.none(), junk, st.dictionaries(st.sampled_from(sorted(VECTORS)), strength))
models = st.one_of(
    st.none(), text, st.builds("embedded:{}={}".format, st.sampled_from(sorted(VECTORS)), text)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow,
          HealthCheck.function_scoped_fixture])  # fmt: skip
@given(models, knobs, junk, text)
def test_anything_is_turned_or_refused(dial, model, given_knobs, profile, asked):
    try:
        turned = dial.read(model, given_knobs, profile, asked)
    except Refused as error:
        refused = error
    else:
        assert isinstance(turned, Turned)
        assert list(turned.setting) == list(VECTORS)
        assert all(round(s, 4) == s and math.isfinite(s) for s in turned.setting.values())
        json.dumps(turned.to_json(), allow_nan=False, ensure_ascii=False).encode()
        return
    body = error_body(str(refused), refused.status, refused.code, refused.param)
    json.dumps(body, ensure_ascii=False).encode()
    assert refused.status in (400, 404)
    assert refused.code
    assert refused.param in ("model", "knobs", "profile")


def test_what_answered_is_told(dial):
    turned = dial.read(None, {"medical": 1.5, "plain": 9}, "clinic", "")
    assert turned.to_json() == {
        "knobs": {"medical": 1.5, "legal": -0.5, "plain": 9},
        "profile": "clinic",
        "domain": None,
        "beyond_safe": ["medical"],  # of the plain knob nobody knows what is safe
    }


def test_what_is_told_of_the_safe_range_is_of_what_answered(dial):
    high = LINE["safe"][1]
    turned = dial.read(None, {"medical": high + 4e-5, "legal": high + 6e-5}, None, "")
    assert turned.setting["medical"] == high
    assert turned.beyond == ("legal",)


def test_a_profile_that_fits_no_longer_is_refused_by_name(dial, profiles):
    bare = Dial("embedded", {"medical": AlignmentVector({}, BASE)}, profiles)
    with pytest.raises(Refused, match=r"profile 'clinic' does not fit .* put it anew") as caught:
        bare.read(None, None, "clinic", "")
    assert (caught.value.status, caught.value.code) == (400, "profile_outdated")


def test_levels_of_a_profile_mean_what_the_vectors_say_now(profiles):
    profiles.put("clinic", {"medical": "expert"})
    moved = trained_calibration({"avoidance": -1.0, "expert": 0.75}).model_dump()
    now = Dial("m", {"medical": AlignmentVector({}, BASE, calibration=moved)}, profiles)
    assert now.read(None, None, "clinic", "").setting == {"medical": 0.75}


def test_a_router_lets_the_knobs_of_its_domain_alone_act(profiles):
    router = SimpleNamespace(
        reads="text",
        domain=lambda model, tokenizer, texts: [
            {"knee": "health", "will": "legal"}.get(one) for one in texts
        ],
    )
    routed = Dial("m", VECTORS, profiles, {"medical": 1, "legal": 2}, router)
    health = routed.read(None, None, None, "knee")
    assert (health.setting, health.domain) == ({**ZERO, "medical": 1}, "health")
    assert routed.read(None, None, None, "will").setting == {**ZERO, "legal": 2}
    assert routed.read(None, None, None, "will").beyond == ("legal",)
    assert routed.read(None, {"plain": 1}, None, "will").setting == ZERO
    assert routed.read(None, {"medical": 9}, None, "will").beyond == ()  # it does not act
    assert routed.read(None, None, None, "tea").to_json()["domain"] is None


def test_what_cannot_serve_is_refused_at_the_start():
    with pytest.raises(AlignvecError, match="alignvec route --reads text"):
        Dial("m", VECTORS, router=SimpleNamespace(reads="hidden"))
    with pytest.raises(AlignvecError, match="unknown knob 'x'"):
        Dial("m", VECTORS, default={"x": 1})
    damaged = AlignmentVector({}, BASE, calibration={"levels": {}, "safe": [0, 1]})
    with pytest.raises(AlignvecError, match="its calibration is damaged"):
        Dial("m", {"k": damaged})
    with pytest.raises(Refused, match="there is none"):
        Dial("m", VECTORS).read(None, None, "clinic", "")


def test_the_knobs_are_described(dial):
    medical, legal, plain = dial.knobs()
    assert (medical["name"], medical["domain"], medical["default"]) == ("medical", "health", 0)
    assert medical["levels"] == {"avoidance": -1, "generic": 0.5, "expert": 1}
    assert medical["calibration"]["top"] == [0, 0.5, 1]
    assert (legal["domain"], legal["safe"]) == ("legal", list(LINE["safe"]))
    assert plain["levels"] == {}
    assert (plain["safe"], plain["calibration"], plain["default"]) == (None, None, 0.25)
    json.dumps(dial.knobs(), allow_nan=False)


def test_a_router_that_cannot_read_here_is_refused_at_the_start():
    def missing(*_):
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    with pytest.raises(AlignvecError, match=r"needs sklearn: pip install 'alignvec\[search\]'"):
        Dial("embedded", VECTORS, router=SimpleNamespace(reads="text", domain=missing))
