"""Cleaning: planted faults are found, good records stay, whatever the file holds."""

import json

import pytest
from dirty import FOREIGN, dirty, outcome
from hypothesis import given, settings
from hypothesis import strategies as st

from alignvec.data import LEVELS, read_records, split_of
from alignvec.data.duplicates import ALIKE, NearDuplicates, similarity
from alignvec.data.quality.clean import clean
from alignvec.data.quality.expected import Expected
from alignvec.data.quality.level_order import judge_levels
from alignvec.data.quality.lines import read_lines
from alignvec.data.quality.rules import RULES, _is_card, _is_iban, _personal
from alignvec.data.quality.stats import statistics
from alignvec.data.records import Record
from alignvec.data.sources import builtin_files
from alignvec.data.spectrum import read_spectrum
from alignvec.errors import AlignvecError
from conftest import refused, run


@pytest.fixture(scope="module")
def medical():
    """Good records as they lie in a file."""
    file = next(file for file in builtin_files() if file.name == "medical.jsonl")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def rejected(cleaned):
    """The rule of every rejected line, by its number from 0."""
    return {n: line.faults[0][0] for n, line in enumerate(cleaned.lines) if line.faults}


def test_good_records_are_kept_as_they_came(tmp_path):
    cleaned = clean("builtin")
    assert len(rejected(cleaned)) <= 6  # 1%
    assert min(cleaned.in_order.values()) > 0.99
    cleaned.write(tmp_path / "clean.jsonl")
    kept = (tmp_path / "clean.jsonl").read_text().splitlines()
    came = {
        line for file in builtin_files() for line in file.read_text("utf-8").splitlines() if line
    }
    assert set(kept) <= came
    assert len(kept) + len(rejected(cleaned)) == 660


def test_every_planted_fault_is_found_and_no_good_record_rejected(tmp_path):
    rule_of = dirty(tmp_path / "dirty.jsonl", each=12, seed=0)
    assert set(rule_of.values()) == set(RULES)
    found = outcome(clean(tmp_path / "dirty.jsonl"), rule_of)
    good = found.pop("good")
    assert found == {rule: {"planted": 12, "found": 12} for rule in RULES}
    assert good["rejected"] <= 0.01 * good["records"]


@pytest.mark.parametrize(
    "text",
    [
        "jane.doe@example.com", "+44 20 7946 0958", "(555) 010-4477", "0171 4567890",
        "06 12 34 56 78", "GB82 WEST 1234 5698 7654 32", "DE89370400440532013000",
        "4111-1111-1111-1111", "219-09-9123", "192.168.0.17", "2001:db8::ff00:42:8329",
    ],
)  # fmt: skip
def test_personal_data_is_seen(text):
    assert list(_personal(f"Look at {text} please. I said so."))


@pytest.mark.parametrize(
    "text",
    [
        "135/85 on 12.05.2024 at 10:30:45", "recommendation 1.4.10.2", "120-130 mmHg, 5-10 mg",
        "$1,250,000,000 or 0.123456789", "call 1-800-222-1222 or 0800 1111", "Form 1099-B, 401(k)",
        "from 2019-2020 to 2024-2025", "GB82 WEST 1234 5698 7654 33", "4111 1111 1111 1112",
        "29 U.S.C. 2601-2654", "every 12 12 12 12 hours", "PMID 31234567", "Boston 02110-1301",
    ],
)  # fmt: skip
def test_numbers_that_are_no_personal_data(text):
    assert list(_personal(f"Look at {text} please.")) == []


@given(st.integers(10**14, 10**15 - 1), st.integers(0, 15), st.integers(1, 9))
def test_one_wrong_digit_makes_no_card_number(number, at, more):
    digits = next(f"{number}{last}" for last in range(10) if _is_card(f"{number}{last}"))
    wrong = digits[:at] + str((int(digits[at]) + more) % 10) + digits[at + 1 :]
    assert not _is_card(wrong)


@given(st.integers(0, 10**18 - 1), st.integers(4, 21), st.integers(1, 9))
def test_one_wrong_digit_makes_no_iban(account, at, more):
    right = next(code for check in range(2, 99) if _is_iban(code := f"DE{check:02}{account:018}"))
    wrong = right[:at] + str((int(right[at]) + more) % 10) + right[at + 1 :]
    assert not _is_iban(wrong)


word = st.sampled_from(["ab", "c'd", "ef", "gh", "été", "42", "-", "..."])
words = st.lists(word, max_size=30).map(" ".join)


@given(words, words)
def test_similarity_is_a_symmetric_share(one, other):
    assert 0 <= similarity(one, other) == similarity(other, one) <= 1
    assert similarity(one, one) in (0, 1)  # 0: no word at all


@settings(deadline=None)
@given(st.integers(0, 659), st.data())
def test_a_text_with_two_words_changed_is_found_again(number, data):
    records = _builtin()
    text = records[number].levels[data.draw(st.sampled_from(LEVELS))].split()
    for at in data.draw(st.sets(st.integers(0, len(text) - 1), min_size=2, max_size=2)):
        text[at] = "changed"
    near = NearDuplicates()
    for n, record in enumerate(records[number : number + 3]):
        for level in LEVELS:
            near.add((n, level), record.levels[level])
    (key, _), share = near.near(" ".join(text))
    assert key == 0
    assert share >= ALIKE
    assert not near.add_new(" ".join(text))


def _builtin(known=[]):  # noqa: B006
    known.extend([] if known else read_records("builtin"))
    return known


lines = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=20),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
            max_leaves=6,
        ).map(lambda value: json.dumps(value).encode()),
        st.dictionaries(
            st.sampled_from(["id", "domain", "persona", "query", *LEVELS, "more"]),
            st.text(max_size=40) | st.integers(),
        ).map(lambda record: json.dumps(record).encode()),
    ),
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(lines)
def test_every_line_of_any_file_is_kept_or_rejected(tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("any")
    good = {"id": "a", "domain": "tea", "query": "how?", "low": "So.", "high": "Thus."}
    content = b"\n".join([*found, json.dumps(good).encode()])
    (folder / "any.jsonl").write_bytes(content)
    cleaned = clean(folder / "any.jsonl", skip=["language"])
    cleaned.write(folder / "clean.jsonl")
    kept = (folder / "clean.jsonl").read_bytes().splitlines()
    rejections = (folder / "clean.rejected.jsonl").read_text().split("\n")[:-1]
    assert len(kept) + len(rejections) == sum(bool(line.strip()) for line in content.split(b"\n"))
    assert {json.loads(line)["rule"] for line in rejections} <= set(RULES)
    assert {line.strip() for line in kept} <= {line.strip() for line in content.split(b"\n")}


def test_a_rejection_names_line_rule_and_all_reasons(tmp_path, medical):
    bad = {**medical[1], "generic": "**No", "more": [1, "\ud800"]}
    file = write(tmp_path / "some.jsonl", [medical[0], bad])
    file.write_bytes(file.read_bytes() + b"{broken\n\n\xff\xfe\n")
    cleaned = clean(file)
    cleaned.write(tmp_path / "out.jsonl")
    markdown, broken, binary = map(
        json.loads, (tmp_path / "out.rejected.jsonl").read_text().splitlines()
    )
    assert (markdown["line"], markdown["rule"]) == ("some.jsonl, line 2", "markdown")
    assert [one["rule"] for one in markdown["also"]] == ["truncated", "length"]
    assert markdown["record"] == bad
    assert (broken["rule"], broken["record"]) == ("schema", "{broken")
    assert broken["reason"].startswith("not JSON")
    assert binary["reason"] == "not UTF-8 text"
    assert binary["line"] == "some.jsonl, line 5"


def test_of_two_alike_the_test_split_and_the_earlier_one_stay(tmp_path, medical):
    test = next(record for record in medical if split_of(record["id"]) == "test")
    train = [record for record in medical if split_of(record["id"]) == "train"]
    leak = {**train[0], "query": f"Please: {test['query']}"}
    twin = {**train[1], "generic": train[2]["generic"].replace("the", "that")}
    file = write(tmp_path / "some.jsonl", [leak, test, train[2], twin])
    cleaned = clean(file)
    assert rejected(cleaned) == {0: "leakage", 3: "near_duplicate"}
    assert test["id"] in cleaned.lines[0].faults[0][1]
    assert rejected(clean(file, skip=["leakage", "near_duplicate"])) == {}


def test_a_persona_may_ask_as_often_as_is_usual(tmp_path, medical):
    asked = [{**one, "persona": medical[n // 3]["persona"]} for n, one in enumerate(medical[:30])]
    file = write(tmp_path / "three.jsonl", asked)
    assert rejected(clean(file)) == {}
    once = [*medical[:10], {**medical[11], "persona": medical[0]["persona"]}]
    assert set(rejected(clean(write(file, once))).values()) == {"duplicate"}


def test_the_same_last_words_after_other_ones_are_no_repeat(tmp_path, medical):
    """Of a conversation the whole is the query: many end in 'Go on, please.'"""
    rows = [
        {**row, "query": None, "prompt": [
            {"role": "user", "content": row["query"]},
            {"role": "assistant", "content": f"I see; say more of it, {row['persona']}."},
            {"role": "user", "content": "Could you say that again in simpler words for me?"}]}
        for row in medical[:12]
    ]  # fmt: skip
    assert rejected(clean(write(tmp_path / "d.jsonl", rows))) == {}
    again = [*rows, {**rows[3], "id": "again"}]
    (one,) = rejected(clean(write(tmp_path / "d.jsonl", again)))
    assert one in (3, 12)


def test_a_level_repeated_within_its_record(tmp_path, medical):
    file = write(tmp_path / "some.jsonl", [{**medical[0], "expert": medical[0]["generic"]}])
    assert rejected(clean(file)) == {0: "duplicate"}


def test_levels_of_any_number_and_name_come_from_the_data(tmp_path, medical):
    """Four levels, no spectrum: they are judged by what most records have, and by each other."""
    renamed = [
        {"id": r["id"], "domain": "new", "query": r["query"], "bare": r["avoidance"],
         "some": r["generic"], "most": r["expert"],
         "all": r["expert"].replace(".", " (ICD-10, SNOMED CT, LOINC).")}
        for r in medical[:60]
    ]  # fmt: skip
    swapped = {**renamed[5], "bare": renamed[5]["all"], "all": renamed[5]["bare"]}
    del renamed[7]["most"]
    file = write(tmp_path / "four.jsonl", [*renamed[:5], swapped, *renamed[6:]])
    cleaned = clean(file, skip=["near_duplicate"])
    assert rejected(cleaned) == {5: "level_order", 7: "schema"}
    assert cleaned.report()["not_checked"]["new"]["length"] == "no spectrum"
    two = clean(file, levels=["bare", "some"], skip=["near_duplicate"])
    assert 7 not in rejected(two)


def test_a_spectrum_of_the_user_rules_its_domain(tmp_path, medical):
    file = tmp_path / "short.yaml"
    file.write_text(
        "version: 1\ndomain: medical\nabout: health\nwords: [5, 20]\ntopics: [any]\nlevels:\n"
        "  - {name: generic, instruction: plain}\n  - {name: expert, instruction: exact}\n"
    )
    spectrum = read_spectrum(str(file))
    cleaned = clean(write(tmp_path / "some.jsonl", medical[:4]), [spectrum])
    assert set(rejected(cleaned).values()) == {"length"}
    with pytest.raises(AlignvecError, match="of domain 'legal'; the domains of the data: medical"):
        clean(tmp_path / "some.jsonl", [read_spectrum("legal")])


def test_what_cannot_be_told_is_not_judged(tmp_path, medical):
    few = clean(write(tmp_path / "few.jsonl", medical[:20]))
    assert few.not_checked["medical"]["level_order"] == "fewer than 30 records"
    assert few.in_order == {"medical": None}
    generic = [record["generic"] for record in medical[:120]]
    same = [
        Record(id=low, query="?", levels={"low": low, "high": high})
        for low, high in zip(generic[:60], generic[60:], strict=True)
    ]
    judged = judge_levels(same, Expected(("low", "high")))
    assert "only" in judged.not_checked["level_order"]
    assert not any(judged.faults)


def test_other_languages_by_their_spectrum(tmp_path):
    record = {"id": "a", "domain": "tee", "query": "Wie lange muss ich noch auf Antwort warten?",
              "kurz": FOREIGN["de"], "lang": FOREIGN["de"].replace("Briefe", "Belege")}  # fmt: skip
    file = write(tmp_path / "de.jsonl", [record])
    assert rejected(clean(file, skip=["near_duplicate"])) == {}  # nobody said English
    spectrum = tmp_path / "tee.yaml"
    spectrum.write_text(
        "version: 1\ndomain: tee\nabout: Tee\nlanguage: de\ntopics: [Tee]\nlevels:\n"
        "  - {name: kurz, instruction: kurz}\n  - {name: lang, instruction: lang}\n"
    )
    german = clean(file, [read_spectrum(str(spectrum))], skip=["near_duplicate"])
    assert rejected(german) == {}
    assert german.not_checked["tee"]["refusal"] == "not English"


def test_from_the_command_line(tmp_path, medical):
    bad = [{**medical[4], "expert": "As an AI, I agree."}, {**medical[5], "query": 3}]
    file, out = write(tmp_path / "some.jsonl", [*medical[:4], *bad]), tmp_path / "clean.jsonl"
    report = json.loads(run("data", "clean", file, "-o", out, "--json").stdout)
    assert (report["read"], report["kept"]) == (6, 4)
    assert {rule: n for rule, n in report["rejected"].items() if n} == {"meta": 1, "schema": 1}
    assert len(list(read_records(out))) == 4
    assert len(read_lines(out)) == 4
    assert len((tmp_path / "clean.rejected.jsonl").read_text().splitlines()) == 2
    shown = run("data", "clean", file, "-o", out, "--overwrite", "--skip", "meta").stdout
    assert "4 of 6 records are kept" in shown
    assert "level_order is not checked in medical: fewer than 30 records" in shown
    listed = run("data", "clean", "--rules").stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(RULES)


def test_bad_input_is_one_line(tmp_path, medical):
    good = write(tmp_path / "good.jsonl", medical[:2])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "utf16.jsonl").write_text(json.dumps(medical[0]), encoding="utf-16")
    write(tmp_path / "bare.jsonl", [{"id": "a", "query": "q"}])
    cases = [
        (("absent.jsonl",), "no such file"),
        (("",), "cannot be read as a dataset"),
        (("empty.jsonl",), "holds no records"),
        (("utf16.jsonl",), "line 1: not UTF-8 text"),
        (("bare.jsonl",), "the records have no responses"),
        (("good.jsonl", (), (), ["lenght"]), "did you mean 'length'"),
        (("good.jsonl", (), (), ["schema"]), "unknown rule to skip 'schema'"),
    ]
    for (name, *options), message in cases:
        with pytest.raises(AlignvecError, match=message) as caught:
            clean(tmp_path / name, *options)
        assert "\n" not in str(caught.value)
    taken, out = tmp_path / "bare.jsonl", tmp_path / "out.jsonl"
    command = ("data", "clean", good)
    assert "also an input" in refused(*command, "-o", good, "--overwrite")
    assert "already exists" in refused(*command, "-o", taken)
    assert "no spectrum 'none'" in refused(*command, "-o", out, "--spectrum", "none")
    run(*command, code=2)
    assert not out.exists()


def tea(n, **more):
    """A good record of a domain that no spectrum ships for."""
    parts = ("leaf", "cup", "kettle", "field", "hill", "shop", "town", "river")
    one, other = parts[n % 8], parts[n // 8 % 8]
    return {"id": f"t{n}", "domain": "tea", "query": f"Which {one} of {n} pairs with {other}?",
            "low": f"Nobody at the {one} number {n} could say, ask {other}.",
            "high": f"Take {n} grams from any {one}, then rinse {other} twice."} | more  # fmt: skip


UNKNOWN = {
    "source": "our clinic's forum",
    "url": "https://example.com/a?mail=jane.doe@example.com",
    "model": "gpt-4",
    "notes": "Checked by Ada.",
    "created_at": "2024-11-03T10:30:45Z",
    "prompt": None,  # stands for the query again
    "levels": "two",
    "score": 3,
    "tags": ["a", "b"],
    "meta": {"levels": {}},
    "label": "",
}


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("domain", ["tea", "medical"])
def test_a_field_that_cleaning_does_not_know_is_no_reason_to_reject(
    tmp_path, medical, domain, name
):
    records = [tea(n) for n in range(8)] if domain == "tea" else medical[:8]
    more = [{**one, name: UNKNOWN[name] or one["query"]} for one in records]
    plain = clean(write(tmp_path / "plain.jsonl", records))
    with_more = clean(write(tmp_path / "more.jsonl", more))
    assert rejected(with_more) == rejected(plain) == {}
    assert with_more.levels == plain.levels
    some = [*records[:4], *more[4:]]
    assert rejected(clean(write(tmp_path / "some.jsonl", some))) == {}


@pytest.mark.parametrize(
    ("names", "levels"),
    [(("safe", "unsafe"), ["unsafe", "safe"]), (("chosen", "rejected"), ["rejected", "chosen"])],
)
def test_levels_that_are_known_by_name(tmp_path, names, levels):
    records = [
        {"prompt": one["query"], "notes": f"Note {n} says so.", names[0]: one["low"],
         names[1]: one["high"]}
        for n, one in enumerate(map(tea, range(8)))
    ]  # fmt: skip
    cleaned = clean(write(tmp_path / "some.jsonl", records))
    assert (cleaned.levels, rejected(cleaned)) == ({"general": levels}, {})
    assert cleaned.others == {"general": ["notes"]}


def test_what_is_not_judged_is_said(tmp_path):
    file = write(tmp_path / "some.jsonl", [tea(n, source="a forum") for n in range(4)])
    shown = run("data", "clean", file, "-o", tmp_path / "out.jsonl").stdout
    assert "note: source of tea are no levels and not judged; the levels are low, high" in shown


CHINESE = [
    "我无法就您夜里醒来的情况给出个人建议，因为这需要了解您的病史和用药。请预约全科医生，由医生来判断。",
    "夜里反复醒来往往与作息不规律、咖啡因或压力有关。可以固定起床时间，下午以后不喝咖啡，睡前放下手机。",
    "维持性失眠常见于三点前后醒来，首选认知行为疗法，包括睡眠限制和刺激控制。若伴打鼾，应排除呼吸暂停。",
    "血压偏高时先连续七天早晚各测两次，取平均值再判断。减少食盐、每周快走五次，多数人几周后能下降。",
    "关于您服用的药物剂量，我不能替您作出判断，这取决于您的肾功能。请直接询问开药的医生或药剂师。",
    "家庭血压平均值达到一百三十五即提示高血压，需结合动态监测确认。起始可选钙通道阻滞剂，并复查肌酐。",
]
JAPANESE = [
    "夜中に目が覚める原因については、私から助言をすることはできません。かかりつけの医師に相談してください。",
    "夜中に何度も目が覚めるときは、起きる時刻を毎日そろえ、午後のコーヒーを控えることから始めます。",
    "中途覚醒型の不眠には認知行動療法が第一選択で、睡眠制限と刺激制御を組み合わせます。",
    "血圧が高めなら、朝と晩に二回ずつ一週間測り、平均を見ます。塩分を減らし、早歩きをしてみましょう。",
    "薬の量については判断をお伝えできません。腎機能や他の薬を確認するため、処方した医師に相談してください。",
    "家庭血圧の平均が百三十五以上なら高血圧を疑い、自由行動下の測定で確認し、腎機能も調べます。",
]
THAI = [
    "ฉันไม่สามารถให้คำแนะนำเฉพาะบุคคลเรื่องการตื่นกลางดึกได้ เพราะต้องรู้ประวัติสุขภาพ กรุณานัดพบแพทย์",
    "การตื่นกลางดึกบ่อยมักมาจากเวลานอนที่ไม่แน่นอน ลองตื่นเวลาเดิมทุกวัน งดกาแฟหลังเที่ยง และปิดหน้าจอก่อนนอน",
    "อาการนอนไม่หลับควรเริ่มด้วยการบำบัดความคิดและพฤติกรรม หากกรนและง่วงกลางวันควรตรวจการนอน",
    "ถ้าความดันสูงให้วัดเช้าเย็นครั้งละสองรอบเป็นเวลาเจ็ดวันแล้วหาค่าเฉลี่ย ลดเกลือ และเดินเร็วสัปดาห์ละห้าวัน",
    "ฉันตัดสินขนาดยาความดันแทนคุณไม่ได้ เพราะขึ้นอยู่กับการทำงานของไต ให้ถามเภสัชกรที่ดูประวัติทั้งหมดของคุณ",
    "ค่าเฉลี่ยความดันที่บ้านเกินเกณฑ์บ่งชี้โรคความดันโลหิตสูง ควรยืนยันด้วยเครื่องวัดตลอดวัน และตรวจค่าไต",
]
ASKED = {
    "zh": ("每天夜里三点醒来正常吗？", "血压一直偏高该怎么办？"),
    "ja": ("毎晩三時に目が覚めるのは普通ですか？", "血圧が高めですが、どうすればいいですか？"),
    "th": ("ตื่นตีสามทุกคืนปกติไหม", "ความดันสูงควรทำอย่างไรดี"),
}
WRITTEN = {"zh": CHINESE, "ja": JAPANESE, "th": THAI}


def two_records(language):
    texts = WRITTEN[language]
    order = [(0, 1, 2), (4, 3, 5)]
    return [
        {"id": f"{language}{n}", "domain": "sleep", "query": query}
        | {level: texts[at] for level, at in zip(("low", "middle", "high"), which, strict=True)}
        for n, (query, which) in enumerate(zip(ASKED[language], order, strict=True))
    ]


def spectrum_of(path, language, domain="sleep"):
    path.write_text(
        f"version: 1\ndomain: {domain}\nabout: sleep\nlanguage: {language}\nwords: [20, 40]\n"
        "topics: [sleep]\nlevels:\n  - {name: low, instruction: a, declines: true}\n"
        "  - {name: middle, instruction: b}\n  - {name: high, instruction: c}\n"
    )
    return read_spectrum(str(path))


@pytest.mark.parametrize("language", WRITTEN)
@pytest.mark.parametrize("known", [True, False], ids=["spectrum", "no_spectrum"])
def test_good_records_in_scripts_without_spaces(tmp_path, language, known):
    file = write(tmp_path / "some.jsonl", two_records(language))
    spectra = [spectrum_of(tmp_path / "s.yaml", language)] if known else []
    cleaned = clean(file, spectra)
    assert rejected(cleaned) == {}
    assert "language" not in cleaned.not_checked["sleep"]


@pytest.mark.parametrize("language", WRITTEN)
def test_numbers_of_scripts_without_spaces(tmp_path, language):
    file = write(tmp_path / "some.jsonl", two_records(language))
    found = statistics(file, [spectrum_of(tmp_path / "s.yaml", language)])
    assert found["domains"]["sleep"]["outside_band"] == dict.fromkeys(("low", "middle", "high"), 0)
    for one in found["levels"].values():
        assert 15 < one["words"]["mean"] < 60
        assert one["readability_grade"]["mean"] is None  # made for English
    run("data", "stats", file, "-o", tmp_path / "out")


@pytest.mark.parametrize("language", WRITTEN)
def test_faults_in_scripts_without_spaces(tmp_path, language):
    first, second = two_records(language)
    changed = {"zh": ("医生", "大夫"), "ja": ("医師", "先生"), "th": ("แพทย์", "หมอใหญ่")}[language]
    twin = {**second, "low": first["low"].replace(*changed)}
    assert twin["low"] != first["low"]
    cut = {**first, "high": first["high"][:12] + "，"}
    long = {**first, "high": first["high"] * 5}
    english = {**second, "middle": "Take a walk every day and sleep in a dark room, then see how "
               "you feel after two weeks of it."}  # fmt: skip
    spectra = [spectrum_of(tmp_path / "s.yaml", language)]
    for records, rule in (
        ([first, twin], {1: "leakage"}),
        ([cut], {0: "truncated"}),
        ([long], {0: "length"}),
        ([english], {0: "language"}),
    ):
        found = rejected(clean(write(tmp_path / "some.jsonl", records), spectra))
        assert {n: one.replace("near_duplicate", "leakage") for n, one in found.items()} == rule


@pytest.mark.parametrize("language", WRITTEN)
def test_such_a_text_in_an_english_set_is_seen(tmp_path, medical, language):
    bad = {**medical[4], "expert": WRITTEN[language][1]}
    cleaned = clean(write(tmp_path / "some.jsonl", [*medical[:4], bad]))
    assert rejected(cleaned) == {4: "language"}


def test_chinese_under_the_name_of_a_shipped_domain_is_not_taken_for_bad_english(tmp_path):
    records = [
        {"id": one["id"], "domain": "medical", "query": one["query"], "avoidance": one["low"],
         "generic": one["middle"], "expert": one["high"]}
        for one in two_records("zh")
    ]  # fmt: skip
    cleaned = clean(write(tmp_path / "some.jsonl", records))
    assert rejected(cleaned) == {}
    assert cleaned.levels == {"medical": list(LEVELS)}
    assert cleaned.not_checked["medical"]["length"] == "no spectrum"


def test_a_record_in_another_language_than_most(tmp_path):
    german = {"id": "de", "domain": "tea", "query": "Wie lange noch?", "low": FOREIGN["de"],
              "high": FOREIGN["de"].replace("Briefe", "Belege")}  # fmt: skip
    english = [tea(n) | {"high": f"Warm the pot of {n} first, wait {n} minutes and then pour it"
               f" slowly into {n + 2} small cups."} for n in range(5)]  # fmt: skip
    file = write(tmp_path / "some.jsonl", [*english, german])
    alike = ["near_duplicate", "leakage"]
    assert rejected(clean(file, skip=alike)) == {5: "language"}


@pytest.mark.parametrize(
    "text",
    ["请拨打010-82345678联系", "電話は03-1234-5678です", "โทร02-123-4567ได้",
     "服务器203.0.113.42记录", "账号GB82WEST12345698765432转账", "信箱a.b@example.com谢谢"],
)  # fmt: skip
def test_personal_data_between_letters_of_such_scripts(text):
    assert list(_personal(text))


def test_a_change_of_a_letter_leaves_a_chinese_text_alike():
    assert similarity("我每天晚上三点醒来怎么办？", "我每天晚上四点醒来怎么办？") >= ALIKE
    assert max(similarity(a, b) for texts in WRITTEN.values() for a in texts
               for b in texts if a != b) < ALIKE  # fmt: skip
