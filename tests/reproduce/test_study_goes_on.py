"""What a study does where something is amiss, or comes later: it goes on, and says so."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from alignvec.errors import AlignvecError, NoNumbersError
from alignvec.knobs.model import KnobModel
from alignvec.report.study import write_report
from alignvec.reproduce import behaviours, launch, run, training
from alignvec.reproduce.item import Item, Work, works
from alignvec.reproduce.run import items_of
from alignvec.reproduce.scale import Scale
from alignvec.reproduce.study import Study
from alignvec.vector.alignment_vector import AlignmentVector

TINY = Scale(
    train=5, passes=1, rank=4, queries=3, answers=2, tokens=4, strengths=(-1.0, 0.0, 1.0),
    few=(0.0, 1.0), grid=(-1.0, 1.0), searched=2, targets=1, retrained=2, steering=2,
)  # fmt: skip
LEVELS = ["curt", "rich"]


@pytest.fixture(scope="module")
def base(tiny):
    return str(tiny(max_position_embeddings=2048))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`data("tea")` is a file of these domains."""

    def of(*domains):
        file = tmp_path_factory.mktemp("data") / "d.jsonl"
        lines = [
            {"id": f"{one}{n}", "domain": one, "query": f"how about {one} number {n}?",
             "curt": "no idea at all", "rich": f"brew {one} for three minutes"}
            for one in domains
            for n in range(40)
        ]  # fmt: skip
        file.write_text("\n".join(map(json.dumps, lines)))
        return str(file)

    return of


def run_parts(study, *parts):
    with study.opened():
        run.run(study, parts)


def lacks(study, tmp_path):
    write_report([study.out], tmp_path / "report")
    told = json.loads((tmp_path / "report/report.json").read_text())
    return {one["name"]: " ".join(one["missing"]) for one in told["sections"]}


def test_a_vector_that_leaves_no_numbers_is_a_result_and_the_rest_goes_on(base, data, tmp_path):
    study = Study(base, tmp_path / "s", TINY, data("tea"), LEVELS)
    run_parts(study, "training")
    folder = study.out / "vectors/one-sided/tea"
    (1e30 * AlignmentVector.from_pretrained(folder).in_memory()).save_pretrained(
        folder, overwrite=True
    )
    run_parts(study, "single", "leak", "baselines", "transfer", "inference", "ability")
    for name in ("single/tea/one-sided/1", "baselines/tea/scaled"):
        assert "no numbers" in study.result(name)["failed"], name
    soup = study.result("baselines/tea/soup")["levels"]  # without it there are some
    assert {one["strength"] for one in soup.values()} == {0.0}
    moved = study.result("transfer/tea/one-sided/base/1")
    assert {kind: list(one) for kind, one in moved.items()} == {kind: ["failed"] for kind in moved}
    (leak,) = study.result("leak/one-sided")
    assert leak["effect"] == {"curt": {}, "rich": {}}
    assert [one["kl"] for one in study.result("ability/tea/one-sided")] == [None, 0.0, None]
    assert sum(study.result("single/tea/along/1")["rates"]["rate"].values()) == pytest.approx(1)
    told = lacks(study, tmp_path)
    assert "2 could not be measured (the model computes no numbers any more" in told["single"]
    assert "single/tea/one-sided/-1, single/tea/one-sided/1" in told["single"]
    assert "missing" not in "".join(told[part] for part in ("single", "leak", "baselines"))
    for _, item in items_of(study, ["single", "leak", "baselines"]):
        assert study.done(item)  # none is tried again


def test_a_training_that_diverges_is_not_tried_again(base, data, tmp_path, monkeypatch):
    asked, align = [], training.align

    def diverging(base, pairs, out, *told, **more):
        asked.append(out.name)
        if out.name == "one-sided-tea":
            raise NoNumbersError("training diverged")
        return align(base, pairs, out, *told, **more)

    monkeypatch.setattr(training, "align", diverging)
    study = Study(base, tmp_path / "s", TINY, data("tea"), LEVELS)
    run_parts(study, "training", "single")
    failed = "one-sided-tea: training diverged"
    assert study.result("training/one-sided-tea") == {"failed": failed}
    assert study.result("single/tea/one-sided/1") == {"failed": failed}
    assert "rates" in study.result("single/tea/along/1")
    again = Study(base, study.out, TINY, study.data, LEVELS)
    run_parts(again, "ability")
    assert again.result("ability/tea/one-sided") == {"failed": failed}
    assert asked.count("one-sided-tea") == 1


def test_another_engine_writes_and_scores_and_training_is_not_its(base, data, tmp_path):
    """One that is told from transformers by what it was asked for alone."""
    asked, running = [], []

    class Running(KnobModel):
        def close(self):
            running.remove(self)

    def engine(base, vectors, any_base):
        assert not running
        asked.append((base, *vectors, any_base))
        running.append(Running.from_pretrained(base, vectors, check_base=not any_base))
        return running[0]

    here = Study(base, tmp_path / "here", TINY, data("tea"), LEVELS)
    run_parts(here, "single", "transfer", "ability")
    there = Study(base, tmp_path / "there", TINY, here.data, LEVELS, engine=engine)
    run_parts(there, "single", "transfer", "ability")
    assert not running
    assert there.names() == here.names()
    for name in here.names():
        assert there.result(name) == here.result(name), name
    stage = str(there.out / "aligned" / "safety-aligned")
    assert set(asked) == {
        (base, False), (base, "tea", False), (stage, True), (stage, "tea", True),
    }  # fmt: skip
    moved = Study(base, there.out, TINY, here.data, LEVELS)
    with pytest.raises(AlignvecError, match="other models, data or scale"), moved.opened():
        pass


def test_full_vectors_are_no_engines(base, data, tmp_path):
    study = Study(base, tmp_path / "s", replace(TINY, method="full"), data("tea"), LEVELS,
                  engine=lambda *_: pytest.fail("it has no slot for them"))  # fmt: skip
    with study.opened():
        model = training.knobs_of(study, training.ONE_SIDED, ["tea"])
        assert isinstance(model, KnobModel)
        assert model.vectors["tea"].kind == "full"


def test_a_reader_that_is_not_there_is_told_before_anything_is_trained(base, data, tmp_path):
    study = Study(base, tmp_path / "s", TINY, data("tea"), LEVELS, reader=str(tmp_path / "none"))
    with pytest.raises(AlignvecError, match="none"), study.opened():
        pass
    assert not study.out.exists()


def test_another_model_of_the_same_name_is_told_apart(tiny, data, tmp_path):
    """By its fingerprint, which a study of before has none of."""
    for number in (0, 1):
        shutil.copytree(tiny(seed=number), tmp_path / f"{number}/same")
    one, other = (str(tmp_path / f"{number}/same") for number in (0, 1))
    file, out = data("tea"), tmp_path / "s"
    study = Study(one, out, TINY, file, LEVELS, reader=one)
    with study.opened():
        pass
    whole = json.loads((out / "study.json").read_text())
    for base, reader, role in ((other, one, "base"), (one, other, "reader")):
        mixed = Study(base, out, TINY, file, LEVELS, reader=reader)
        with pytest.raises(AlignvecError, match=f"another {role} that is called 'same'"):
            mixed.check_folder()
    (out / "study.json").write_text(json.dumps(study.told))
    with study.opened():
        pass
    assert json.loads((out / "study.json").read_text()) == whole


def test_a_base_that_writes_nothing_is_measured_by_the_references_bounds(base, data, tmp_path):
    study = Study(base, tmp_path / "s", TINY, data("tea"), LEVELS)
    study.shown = lambda text: ""
    run_parts(study, "safety")
    found = study.result("safety/along/0")["safety"]
    assert found["judged"]["reasons"] == {"empty": TINY.answers}
    assert found["text"]["words"] == 0


def test_a_second_model_may_come_later_to_read(base, tiny, data, tmp_path):
    other = str(tiny(seed=1, max_position_embeddings=2048))
    study = Study(base, tmp_path / "s", TINY, data("tea"), LEVELS)
    run_parts(study, "single", "safety")
    before = study.file("single/tea/along/1").read_bytes()
    joined = Study(base, study.out, TINY, study.data, LEVELS, reader=other)
    run_parts(joined, "reading", "transfer")
    assert study.file("single/tea/along/1").read_bytes() == before
    at_once = Study(base, tmp_path / "other", TINY, study.data, LEVELS, reader=other)
    with at_once.opened():
        (item,) = [i for _, i in items_of(at_once, ["single"]) if i.name == "single/tea/along/0"]
        read = at_once.once(item)["text"]["likelihood"]
    assert joined.result("reading/single/tea/along/0") == {"": read}
    assert set(joined.result("reading/safety/along/1")) == {"safety", "harmless"}
    # What was measured before it came, and is used by a new result, is read there.
    assert joined.result("transfer/tea/along/base/0")["tea"]["text"]["likelihood"] == read
    write_report([joined.out], tmp_path / "report")
    told = json.loads((tmp_path / "report/report.json").read_text())
    (section,) = [one for one in told["sections"] if one["name"] == "single"]
    cells = [row["its texts: perplexity"] for row in section["tables"]["single-1"]]
    assert all(cells)
    with pytest.raises(AlignvecError, match="give it as --reader"), study.opened():
        pass


def test_a_checkpoint_goes_when_its_vector_is_there_and_its_record_stays(base, data, tmp_path):
    scale = replace(TINY, method="full")
    study = Study(base, tmp_path / "s", scale, data("tea", "rum"), LEVELS)
    folder = training.vector(study, "one-sided", "tea")
    aligned = study.out / "aligned/one-sided-tea"
    norm = AlignmentVector.from_pretrained(folder).norm()
    assert norm > 0
    assert not list(aligned.glob("*.safetensors"))
    assert training.record_of(study, "one-sided-tea")["seconds"] > 0
    (aligned / "model.safetensors").write_bytes(b"killed before it was removed")
    training.vector(study, "one-sided", "tea")
    assert not list(aligned.glob("*.safetensors"))
    training.forget(study, "one-sided/tea")  # then it is trained again
    found = AlignmentVector.from_pretrained(training.vector(study, "one-sided", "tea"))
    assert found.norm() == pytest.approx(norm, rel=1e-3)
    first, second = behaviours.retrainings(study)
    names = [f"vectors/{behaviours.retrained_name(one)}" for one in behaviours.retrained(study)]
    study.once(first)
    assert (study.out / names[0]).is_dir()  # until its result is written
    study.once(second)
    assert [(study.out / name).exists() for name in names] == [False, True]


def test_all_weights_are_trained_in_a_process_a_gpu(base, data, tmp_path, monkeypatch):
    """Here two processes on CPUs."""
    cpus = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
            "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    scale = replace(TINY, method="full")
    one = Study(base, tmp_path / "one", scale, data("tea"), LEVELS, dtype="float32")
    expected = AlignmentVector.from_pretrained(training.vector(one, "one-sided", "tea"))
    monkeypatch.setattr(launch, "_gpus", lambda device: 3)  # a step of 8 goes among two
    monkeypatch.setattr(launch, "_spread", lambda number: cpus if number == 2 else 1 / 0)
    two = Study(base, tmp_path / "two", scale, one.data, LEVELS, dtype="float32")
    found = AlignmentVector.from_pretrained(training.vector(two, "one-sided", "tea"))
    assert found.cosine(expected) > 0.999
    assert training.record_of(two, "one-sided-tea")["domain"] == "tea"
    monkeypatch.setattr(launch, "_spread", lambda number: ["--no-such-option"])
    with pytest.raises(AlignvecError, match="low-tea in 2 processes ended with 2; see above"):
        training.aligned_model(two, "low-tea", [], "full")


def test_what_several_share_is_counted_once_and_not_when_it_is_done():
    a, b = Work(scored=1), Work(written=10)
    items = [Item("one", dict, a, {"b": b}), Item("two", dict, a, {"b": b, "c": b})]
    assert works(items) == [Work(scored=1, written=10), Work(scored=1, written=10)]
    assert works(items[1:], done=items[:1]) == [Work(scored=1, written=10)]
    assert works(items[:1], done=items[1:]) == [Work(scored=1)]


def test_the_estimate_counts_each_setting_as_often_as_it_is_measured(base, data, tmp_path):
    study = Study(base, tmp_path / "s", TINY, data("tea"), LEVELS)
    parts = ["single", "leak", "transfer"]
    every = [item for _, item in items_of(study, parts)]
    written = sum(work.written for work in works(every))
    run_parts(study, *parts)
    measured = [name for name in study.names() if name.startswith("measured/")]
    prompted = [name for name in study.names() if "/system/" in name or "/few-shot/" in name]
    own = [name for name in study.names() if name.startswith("base/")]
    assert written == TINY.answers * (len(measured) + len(prompted) + len(own[:1]))
