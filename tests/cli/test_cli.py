"""The commands as a user types them, on a tiny model."""

import json
import os
import resource
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file

from conftest import refused, run, run_process, write_records


@pytest.fixture(scope="module")
def vector(tiny, nudged, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "av"
    run("-q", "extract", tiny(), nudged(), "-o", folder)
    return folder


def test_from_records_to_a_figure(tiny, tmp_path):
    data = write_records(tmp_path / "tea.jsonl", 12)
    aligned, av, out = tmp_path / "aligned", tmp_path / "av", tmp_path / "sweep"
    train = ("align", tiny(), "--data", data, "--prefer", "expert,generic,avoidance")
    run(*train, "--lr", "5e-3", "--epochs", "12", "-o", aligned)
    metadata = json.loads(run("extract", tiny(), aligned, "-o", av, "--json").stdout)
    assert metadata["kind"] == "low_rank"
    assert metadata["training"]["prefer"] == ["expert", "generic", "avoidance"]
    sweep = ("eval", tiny(), "--data", data, "--vector", f"tea={av}", "--sweep", "tea=-2:2:1")
    result = json.loads(run(*sweep, "-o", out, "--json").stdout)
    rates = {point["strength"]: point["rate"] for point in result["points"]}
    assert rates[1]["expert"] > 0.9 > rates[-1]["expert"] + 0.5
    for point in result["points"]:
        assert sum(point["rate"].values()) == pytest.approx(1)
        for level, (low, high) in point["interval"].items():
            assert 0 <= low <= point["rate"][level] <= high <= 1
    assert (out / "sweep.png").stat().st_size > 10_000
    svg = (out / "sweep.svg").read_text()
    assert "expert" in svg or "<path" in svg
    assert "tea=2" in run(*sweep, "-o", out).stdout
    one = run("eval", tiny(), "--data", data, "--vector", f"tea={av}", "--set", "tea=2", "-o", out,
              "--json")  # fmt: skip
    assert json.loads(one.stdout)["rate"] == rates[2]


def test_a_vector_through_every_tool(tiny, vector, tmp_path):
    """Inspect, compress, fold, export: what a user does with a vector besides turning it."""
    found = json.loads(run("inspect", vector, "-o", tmp_path / "norms", "--json").stdout)
    assert found["vectors"]["av"]["kind"] == "full"
    assert (tmp_path / "norms-av.png").stat().st_size > 10_000
    small = tmp_path / "small"
    run("compress", vector, "--rank", "4", "--drop-rest", "-o", small)
    run("compress", vector, "--rank", "4", "--dtype", "int8", "-o", tmp_path / "int8")
    assert ", int8, norm" in run("inspect", tmp_path / "int8").stdout
    both = run("inspect", vector, small).stdout
    assert "rank 4" in both
    assert "cosine" in both
    folded = tmp_path / "folded"
    setting = ("--vector", f"k={vector}", "--vector", f"s={small}", "--set", "k=0.5,s=-1")
    run("fold", tiny(), *setting, "-o", folded)
    asked = ("how?", "--max-new-tokens", "8", "--dtype", "float32")
    live = run("generate", tiny(), *asked, *setting).stdout
    assert run("generate", folded, *asked).stdout == live
    run("fold", tiny(), *setting, "--combine", "ties", "--density", "0.3", "-o", tmp_path / "ties")
    assert run("generate", tmp_path / "ties", *asked).stdout
    run("export", small, "--format", "peft", "-o", tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter_config.json").exists()
    run("export", small, "--format", "gguf", "--base", tiny(), "-o", tmp_path / "lora.gguf")
    assert (tmp_path / "lora.gguf").read_bytes()[:4] == b"GGUF"


def test_generate_compares_settings(tiny, vector):
    asked = ("generate", tiny(), "how?", "--vector", f"k={vector}", "--max-new-tokens", "8")
    found = json.loads(run(*asked, "--set", "k=0", "--set", "k=1", "--json").stdout)
    assert [one["setting"] for one in found] == [{"k": 0}, {"k": 1}]
    assert found[0]["answer"] != found[1]["answer"]
    plain = run("generate", tiny(), "how?", "--max-new-tokens", "8").stdout.rstrip("\n")
    assert plain == found[0]["answer"]


def test_trl_files_train_as_they_are(tiny, tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("align", tiny(), "--data", file, "-o", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["prefer"] == ["chosen", "rejected"]
    assert (tmp_path / "out" / "training.png").stat().st_size > 5000
    assert b"<svg" in (tmp_path / "out" / "training.svg").read_bytes()
    # Its vector knows the levels; others' are to be named.
    run("extract", tiny(), tmp_path / "out", "-o", tmp_path / "av")
    measured = ("eval", tiny(), "--data", file, "--answers", "0", "-o", tmp_path / "rates")
    one = ("--vector", f"yes={tmp_path / 'av'}")
    assert json.loads(run(*measured, *one, "--json").stdout)["levels"] == ["rejected", "chosen"]
    run("align", tiny(), "--data", write_records(tmp_path / "tea.jsonl", 4), "-o", tmp_path / "tea")
    run("extract", tiny(), tmp_path / "tea", "-o", tmp_path / "tea-av")
    both = (*one, "--vector", f"tea={tmp_path / 'tea-av'}")
    assert "different levels ('yes' rejected, chosen; 'tea'" in refused(*measured, *both)
    assert "rejected" in run(*measured, *both, "--levels", "rejected,chosen").stdout


def test_help_names_every_command_and_imports_nothing_heavy():
    text = run("--help").stdout
    for command in (
        "demo",
        "align",
        "extract",
        "inspect",
        "compress",
        "fold",
        "export",
        "generate",
        "eval",
        "search",
        "calibrate",
        "route",
        "data",
    ):
        assert command in text
        if command != "data":
            assert "Example: alignvec" in run(command, "--help").stdout
    for command in (
        "personas",
        "queries",
        "responses",
        "clean",
        "annotate",
        "agreement",
        "stats",
    ):
        assert "Example: alignvec data" in run("data", command, "--help").stdout
    code = "import sys, alignvec.cli; print([m for m in ('torch', 'transformers', 'pydantic', "
    code += "'matplotlib', 'numpy') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]"


def test_bad_input_is_one_line(tiny, nudged, vector, tmp_path):
    base, knob = tiny(), f"medical={vector}"
    good = write_records(tmp_path / "good.jsonl", 3)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    lacking = tmp_path / "lacking.jsonl"
    lacking.write_text('{"id": "a", "query": "q", "generic": "g", "expert": "e"}\n')
    evaluate = ("eval", base, "--vector", knob, "-o", tmp_path / "e")
    out = ("-o", tmp_path / "out")
    cases = [
        (("generate", base, "q", "--vector", knob, "--set", "medical=nan"), "'medical'"),
        (("generate", base, "q", "--vector", knob, "--set", "legal=1"), "unknown knob 'legal'"),
        (("generate", base, "q", "--vector", "medical"), "write KNOB=PATH"),
        (("generate", base, "q", "--vector", f"m={tmp_path}/no"), "no alignment vector at"),
        (("generate", tiny(seed=1), "q", "--vector", knob), "belongs to another base"),
        (("generate", tiny("gpt2"), "q", "--vector", knob), "does not have"),
        (("generate", "no/such-model", "q"), "hub cannot be reached"),
        (("generate", tmp_path / "nowhere", "q"), "no base at"),
        (("generate", "../no/such/place", "q"), "no base at"),
        (("generate", good, "q"), "is a file"),
        (("generate", vector, "q"), "is an alignment vector, not a model"),
        ((*evaluate, "--data", empty), "holds no records"),
        ((*evaluate, "--data", lacking), "line 1: field 'avoidance' is missing"),
        ((*evaluate, "--data", good, "--sweep", "medical=0:1:0"), "step of 0"),
        ((*evaluate, "--data", good, "--sweep", "legal=0:1:1"), "unknown knob 'legal'"),
        (("align", base, "--data", lacking, *out), "line 1: field 'avoidance' is missing"),
        (("align", base, "--data", good, "--loss", "x", *out), "unknown loss"),
        (("extract", base, tiny("gpt2"), *out), "differ in architecture"),
        (("extract", base, nudged(), "-o", vector), "already exists"),
        (("extract", base, nudged(), "--dtype", "int4", *out), "unknown dtype"),
        (("extract", base, nudged(), "--rank", "0", *out), "rank must be at least 1"),
        (("fold", base, "--vector", knob, *out), "one --set"),
        (("fold", base, "--vector", knob, "--set", "legal=1", *out), "unknown knob 'legal'"),
        (("fold", tiny("gpt2"), "--vector", knob, "--set", "medical=1", *out), "does not have"),
        (("fold", tiny(seed=1), "--vector", knob, "--set", "medical=1", *out), "another base"),
        (("fold", base, "--vector", knob, "--set", "medical=1", "--dtype", "int8", *out),
         "unknown dtype 'int8'"),
        (("fold", base, "--combine", "slerp", *out), "unknown merge method 'slerp'"),
        (("fold", base, "--combine", "ties", "--density", "0", *out), "density is a share"),
        (("compress", vector, *out), "give a rank or a share"),
        (("export", vector, "--format", "peft", *out), "is dense"),
        (("inspect", tmp_path / "no"), "no alignment vector at"),
    ]  # fmt: skip
    for arguments, message in cases:
        assert message in refused(*arguments), arguments
    assert not (tmp_path / "out").exists()
    for usage in (
        ("generate",),
        ("align", base),
        ("nonsense",),
        ("eval", base, "--frob", "-o", "x"),
    ):
        run(*usage, code=2)


def test_an_incomplete_checkpoint_is_refused(tiny, tmp_path):
    from safetensors.torch import load_file

    for file in tiny().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "incomplete" in refused("generate", tmp_path, "q")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    assert "cannot be loaded" in refused("generate", tmp_path, "q")


def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk_leaves_nothing(tiny, nudged, tmp_path):
    """A limit on the size of a file fails a write as a full disk does."""
    out = tmp_path / "av"
    line = refused("extract", tiny(), nudged(), "-o", out, run=run_process, preexec_fn=small_files)
    assert "File too large" in line or "space" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05])
def test_killed_extract_leaves_no_broken_vector(delay, tiny, nudged, tmp_path):
    """Killed at the moment the vector's partial folder appears, and a little after."""
    import time

    out = tmp_path / "av"
    command = [sys.executable, "-m", "alignvec", "extract", str(tiny()), str(nudged()), "-o", out]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(tmp_path.iterdir()):
        pass
    time.sleep(delay)
    process.kill()
    process.wait()
    if out.exists():  # finished in time
        assert (out / "alignment_vector.json").exists()
    run("extract", tiny(), nudged(), "-o", out, "--overwrite")
    assert torch.isfinite(torch.tensor(vector_norm(out)))
    assert [path.name for path in tmp_path.iterdir()] == ["av"]


def vector_norm(folder):
    from alignvec.vector.alignment_vector import AlignmentVector

    return AlignmentVector.from_pretrained(folder).norm()


def test_unwritable_and_odd_targets(tiny, nudged, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be made" in refused("extract", tiny(), nudged(), "-o", tmp_path / "file" / "av")
    if os.geteuid():
        tmp_path.chmod(0o500)
        assert "not writable" in refused("extract", tiny(), nudged(), "-o", tmp_path / "av")


def test_an_input_is_not_written_over(tiny, nudged, vector, tmp_path):
    fold = ("fold", tiny(), "--vector", f"a={vector}", "--set", "a=1", "--overwrite", "-o")
    for out in (tiny(), vector):
        assert "is also an input" in refused(*fold, out)
    aligned = nudged()
    assert "is also an input" in refused("extract", tiny(), aligned, "-o", aligned, "--overwrite")
    done = run("extract", tiny(), tiny(), "-o", tmp_path / "none")
    assert "the two models are equal" in done.stderr
    wrong = run("compress", vector, "--rank", 0, "-o", tmp_path / "c", code=1)
    assert wrong.stderr.splitlines() == ["error: rank must be at least 1, not 0"]


def test_a_home_behind_a_knobs_name(tiny, vector, records, tmp_path, monkeypatch):
    """The shell leaves the `~` of KNOB=~/PATH as it is."""
    monkeypatch.setenv("HOME", str(vector.parent))
    knob = ("--vector", f"tea=~/{vector.name}")
    fold = ("fold", tiny(), *knob, "--set", "tea=1", "--overwrite", "-o", vector)
    assert "is also an input" in refused(*fold)
    few = (
        "--limits=-1:1",
        "--steps",
        "3",
        "--answers",
        "0",
        "--most-kl",
        "9",
        "--most-perplexity",
        "9",
    )
    run("calibrate", tiny(), *knob, "--data", records, *few)
    run("leak", tiny(), *knob, "--data", records)
    calibration = json.loads((vector / "alignment_vector.json").read_text())["calibration"]
    assert calibration["leak"]
    nowhere = refused("calibrate", tiny(), "--vector", f"tea={tmp_path / 'no'}", "--data", records)
    assert "is no folder" in nowhere


def test_brackets_in_names_are_no_markup(tiny, tmp_path):
    data = tmp_path / "tea.jsonl"
    rows = [{"query": f"steep {n}?", "[/low]": "ask", "tall [v2]": "80 C"} for n in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("eval", tiny(), "--data", data, "--levels", "[/low],tall [v2]", "--answers", "2")
    shown = run(*asked, "-o", tmp_path / "out").stdout
    assert "[/low]" in shown
    assert "tall [v2]" in shown
    assert "nats a token" in shown  # no column is lost where no terminal is


def test_numbers_beyond_sense_are_refused(tiny, vector, tmp_path):
    ask = ("generate", tiny(), "--vector", f"a={vector}", "--max-new-tokens", "4")
    assert run(*ask, "hi", "--temperature", "1e-40").stdout == run(*ask, "hi").stdout
    assert "--seed" in run(*ask, "hi", "--temperature", "1", "--seed", "-1", code=2).stderr
    assert "UTF-8" in refused(*ask, "caf\udce9")
    sweep = ("eval", tiny(), "--vector", f"a={vector}", "-o", tmp_path / "s", "--sweep")
    for span in ("a=0:1:1e-320", "a=-1e308:1e308:1", "a=0:1:0.0001"):
        assert "at most 1000" in refused(*sweep, span)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a?", "chosen": "b", "rejected": None}, "field 'rejected' is empty"),
        ({"prompt": "a?", "chosen": "b"}, "field 'rejected' is missing; texts that may be levels"),
        ({"query": "a?", "low": "b", "high": "c"}, "'avoidance' is missing; texts that may be "
         "levels (--levels): low, high"),
    ],
)  # fmt: skip
def test_what_a_first_record_lacks_is_told_as_what_it_is(tiny, tmp_path, row, said):
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    assert said in refused("align", tiny(), "--data", tmp_path / "d.jsonl", "-o", tmp_path / "o")


@pytest.mark.skipif(bool((found := find_spec("vllm")) and found.origin), reason="it is installed")
def test_an_engine_that_is_not_installed_says_how(tiny, records, tmp_path):
    given = ["eval", tiny(), "--data", records, "-o", tmp_path / "out", "--engine", "vllm"]
    assert "pip install 'alignvec[vllm,search]'" in refused(*given)
