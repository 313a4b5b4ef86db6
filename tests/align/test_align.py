"""Training: what TRL computes, computed once a query; runs that are killed go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from alignvec.align import LOSSES, AlignSettings, align
from alignvec.align.curriculum import pairs_along
from alignvec.align.pairs import pairs_dataset, token_pairs
from alignvec.align.trainer import SharedPromptTrainer
from alignvec.data import LEVELS, preference_pairs, read_records
from alignvec.data.line import spaced
from alignvec.errors import AlignvecError
from alignvec.files import work_folder
from alignvec.vector.alignment_vector import AlignmentVector
from conftest import refused, run, write_records

ORDER = ["expert", "generic", "avoidance"]


@pytest.fixture
def pairs(records):
    return list(preference_pairs(read_records(records), ORDER))


def trainer(cls, base, pairs, folder, **options):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens = token_pairs(pairs, tokenizer)
    dataset = pairs_dataset(tokens, 0, folder)
    if cls is not SharedPromptTrainer:  # TRL's own, from the same texts in the same order
        said = {(*one.prompt, *one.chosen, *one.rejected): one.pair for one in tokens}
        dataset = Dataset.from_list([
            {
                "prompt": [{"role": "user", "content": pair.prompt}],
                "chosen": [{"role": "assistant", "content": pair.chosen}],
                "rejected": [{"role": "assistant", "content": pair.rejected}],
            }
            for row in dataset
            for pair in [said[*row["prompt_ids"], *row["chosen_ids"], *row["rejected_ids"]]]
        ])  # fmt: skip
    targets = ["in_proj"] if "mamba" in base.name else "all-linear"
    return cls(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=DPOConfig(
            output_dir=str(folder), per_device_train_batch_size=8, bf16=False, use_cpu=True,
            gradient_checkpointing=False, report_to="none", learning_rate=1e-2, max_steps=4,
            train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", **options,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=targets),
    )  # fmt: skip


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mamba"])
def test_sharing_a_row_trains_what_trl_trains(loss, architecture, tiny, pairs, tmp_path):
    from trl import DPOTrainer

    found = {}
    for cls in (DPOTrainer, SharedPromptTrainer):
        done = trainer(
            cls, tiny(architecture), pairs, tmp_path / cls.__name__, loss_type=[loss],
            precompute_ref_log_probs=True,
        )  # fmt: skip
        done.train()
        found[cls.__name__] = (
            [(e["loss"], e["rewards/margins"]) for e in done.state.log_history if "loss" in e],
            {n: p.detach().clone() for n, p in done.model.named_parameters() if p.requires_grad},
        )
    (curve, weights), (our_curve, our_weights) = found.values()
    assert len({loss for loss, _ in curve}) > 1  # it does learn
    torch.testing.assert_close(torch.tensor(our_curve), torch.tensor(curve), atol=2e-3, rtol=2e-3)
    for name, weight in weights.items():
        torch.testing.assert_close(our_weights[name], weight, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_aligned_model_prefers_what_it_was_taught(method, tiny, pairs, tmp_path):
    out = tmp_path / "aligned"
    rate = 2e-2 if method == "lora" else 2e-3
    settings = AlignSettings(method=method, learning_rate=rate, epochs=4)
    align(str(tiny()), pairs, out, settings)
    record = json.loads((out / "training.json").read_text())
    assert record["pairs"] == 24
    assert record["curve"][-1]["margin"] > 1 > record["curve"][0]["margin"]
    assert record["data_sha256"]
    assert record["versions"]["torch"] == torch.__version__
    assert not (tmp_path / ".aligned.work").exists()
    vector = AlignmentVector.extract(tiny(), out)
    assert vector.kind == ("low_rank" if method == "lora" else "full")
    assert vector.training["pairs"] == 24
    with pytest.raises(AlignvecError, match="already exists"):
        align(str(tiny()), pairs, out, settings)


SOME = {"q_proj", "down_proj"}


@pytest.mark.parametrize(
    ("architecture", "moved", "not_moved"),
    [("mamba", {"in_proj"}, {"dt_proj", "out_proj"}), ("gemma3", SOME, {"fc1"}),
     ("llava", SOME, {"fc1", "linear_1"})],
)  # fmt: skip
def test_an_adapter_goes_where_a_text_does_and_peft_is_asked(
    architecture, moved, not_moved, tiny, multimodal, pairs, tmp_path
):
    base = tiny(architecture) if architecture == "mamba" else multimodal(architecture)
    align(str(base), pairs[:8], tmp_path / "out", AlignSettings(learning_rate=1e-2))
    vector = AlignmentVector.extract(base, tmp_path / "out")
    modules = {name.split(".")[-2] for name in vector.deltas}
    assert moved <= modules
    assert not modules & not_moved
    assert not any("vision" in name for name in vector.deltas)
    assert all(delta.b.any() for delta in vector.deltas.values())


def test_a_mixture_is_trained_whole_without_the_loss_of_its_routers(tiny, pairs, tmp_path):
    settings = AlignSettings(method="full", learning_rate=2e-3)
    align(str(tiny("mixtral")), pairs[:8], tmp_path / "out", settings)
    vector = AlignmentVector.extract(tiny("mixtral"), tmp_path / "out")
    assert any(".experts." in name for name in vector.deltas)


def test_every_loss_we_name_trains_along_the_knob_and_at_one_end(tiny, records, pairs, tmp_path):
    some = list(read_records(records))[:4]
    along = pairs_along({"tea": some}, spaced(LEVELS), passes=1)
    for name in LOSSES:
        for way, given in (("along", along), ("one", pairs[:8])):
            out = tmp_path / name / way
            knobs = ["tea"] if way == "along" else []
            settings = AlignSettings(loss=name, batch_size=12)
            align(str(tiny()), given, out, settings, knobs=knobs)
            assert len(json.loads((out / "training.json").read_text())["curve"]) == 1


def test_a_step_is_two_queries_also_where_everyday_questions_come_first(tiny, records, tmp_path):
    """Of two knobs a share of the rows is held, and such a question has a row of its own."""
    some = list(read_records(records))
    both = {"tea": some[:6], "rum": some[6:]}
    drawn = (pairs_along(both, spaced(LEVELS), 1, seed) for seed in range(200))
    pairs = next(found for found in drawn if found[0].id.startswith("everyday"))
    align(str(tiny()), pairs, tmp_path / "out", AlignSettings(), knobs=list(both))
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["settings"]["batch_size"] == 2 * len(LEVELS)
    assert len(record["curve"]) == len(some) // 2


def test_same_seed_same_weights(tiny, pairs, tmp_path):
    tensors = []
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        align(str(tiny()), pairs, tmp_path / name, AlignSettings(seed=seed))
        tensors.append(load_file(tmp_path / name / "adapter_model.safetensors"))
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert not all(torch.equal(tensors[0][name], tensors[2][name]) for name in tensors[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "dop"}, "unknown loss 'dop'; did you mean 'dpo'"),
        ({"method": "half"}, "unknown method"),
        ({"learning_rate": float("nan")}, "learning rate"),
        ({"batch_size": 0}, "batch_size must be a positive number"),
        ({"layers": 1.5}, "layers"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"dtype": "float16", "method": "full"}, "float16 cannot be trained with method full"),
        ({"dtype": "bfloat16", "method": "full"}, "bfloat16 rounds most steps of method full"),
    ],
)
def test_senseless_settings_are_refused(change, message):
    with pytest.raises(AlignvecError, match=message):
        AlignSettings(**change)


def test_a_loss_that_is_no_number_leaves_no_result(tiny, pairs, tmp_path):
    with pytest.raises(AlignvecError, match=r"diverged|not a number"):
        align(str(tiny()), pairs, tmp_path / "x", AlignSettings(learning_rate=1e30, epochs=3))
    assert not (tmp_path / "x").exists()


def test_killed_training_leaves_nothing_broken_and_goes_on(tiny, tmp_path):
    data = write_records(tmp_path / "many.jsonl", 24)
    out = tmp_path / "aligned"
    command = (
        "align",
        tiny(),
        "--data",
        data,
        "--seed",
        "1",
        "--epochs",
        "6",
        "--answers",
        "0",
        "--dtype",
        "float32",  # that of another process, whatever the CPU is fastest in
        "-o",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "alignvec", *map(str, command), str(out)], stderr=subprocess.DEVNULL
    )
    work = tmp_path / ".aligned.work"
    deadline = time.time() + 240
    while time.time() < deadline and process.poll() is None:
        if any((c / "trainer_state.json").exists() for c in work.glob("checkpoint-*")):
            break
        time.sleep(0.05)
    assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert "resuming from checkpoint-" in run(*command, out).stderr
    straight = tmp_path / "straight"
    run(*command, straight)
    resumed, whole = (load_file(x / "adapter_model.safetensors") for x in (out, straight))
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], atol=1e-4, rtol=1e-3)
    curve = json.loads((out / "training.json").read_text())["curve"]
    assert [entry["step"] for entry in curve] == list(range(1, len(curve) + 1))


def test_a_training_that_goes_on_counts_what_it_took_before(tiny, pairs, tmp_path, monkeypatch):
    out, settings = tmp_path / "aligned", AlignSettings(save_every=1)

    def stop(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("alignvec.align.run._curve", stop)
        align(str(tiny()), pairs, out, settings)
    for file in (tmp_path / ".aligned.work").glob("checkpoint-*/trainer_state.json"):
        state = json.loads(file.read_text())
        for entry in state["log_history"]:
            assert entry["spent"] < 1000
            entry["spent"] += 1000
        file.write_text(json.dumps(state))
    align(str(tiny()), pairs, out, settings)
    assert 1000 < json.loads((out / "training.json").read_text())["seconds"] < 2000


def test_a_base_of_the_same_name_is_another_run(tiny, pairs, tmp_path, monkeypatch):
    """Stopped on one base and started on another it starts anew; what lies beside it stays."""
    out = tmp_path / "aligned"
    for name, seed in (("one", 0), ("two", 1)):
        shutil.copytree(tiny(seed=seed), tmp_path / name / "base")
    theirs = tmp_path / "aligned.checkpoints" / "mine.txt"
    theirs.parent.mkdir()
    theirs.write_text("three weeks of training")
    settings = AlignSettings(save_every=1, epochs=2)

    def stop(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("alignvec.align.run._curve", stop)
        align(str(tmp_path / "one" / "base"), pairs, out, settings)
    assert list((tmp_path / ".aligned.work").glob("checkpoint-*"))
    align(str(tmp_path / "two" / "base"), pairs, out, settings)
    align(str(tmp_path / "two" / "base"), pairs, tmp_path / "at-once", settings)
    found, expected = (
        load_file(folder / "adapter_model.safetensors") for folder in (out, tmp_path / "at-once")
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert theirs.exists()
    assert not (tmp_path / ".aligned.work").exists()


def test_a_second_run_into_one_output_is_refused_before_any_work(tiny, pairs, tmp_path):
    with work_folder(tmp_path / "aligned"):
        for settings in (AlignSettings(), AlignSettings(seed=7)):
            with pytest.raises(AlignvecError, match=r"another process is writing .*aligned"):
                align("no/such-base", pairs, tmp_path / "aligned", settings)


def test_an_adapter_is_extracted_on_the_base_that_it_was_trained_on(tiny, pairs, tmp_path):
    align(str(tiny()), pairs[:4], tmp_path / "aligned", AlignSettings())
    with pytest.raises(AlignvecError, match="was trained on another base"):
        AlignmentVector.extract(tiny(seed=1), tmp_path / "aligned")
    assert AlignmentVector.extract(tiny(), tmp_path / "aligned").deltas


def test_a_conversation_is_trained_on_and_measured_as_it_is(tiny, tmp_path):
    """A system message and earlier turns before the question, along the knob and at one end."""
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"},
             {"role": "assistant", "content": "hello"}]  # fmt: skip
    rows = [
        {
            "prompt": [*turns, {"role": "user", "content": f"what is {n}?"}],
            "chosen": [{"role": "assistant", "content": f"it is {n}"}],
            "rejected": [{"role": "assistant", "content": "no idea"}],
        }
        for n in range(8)
    ]
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for way in ("--one-sided", "--two-sided"):
        out = tmp_path / way
        run("align", tiny(), "--data", data, way, "--lr", "2e-2", "--epochs", "4", "--answers", "2",
            "-o", out)  # fmt: skip
        assert json.loads((out / "training.json").read_text())["pairs"] == 8
        run("extract", tiny(), out, "-o", tmp_path / "av", "--overwrite")
        found = run("eval", tiny(), "--data", data, "--levels", "rejected,chosen", "--vector",
                    f"k={tmp_path / 'av'}", "--set", "k=1", "-o", out / "e", "--json")  # fmt: skip
        assert json.loads(found.stdout)["rate"]["chosen"] == 1


def test_what_is_too_long_is_counted_and_said(tiny, tmp_path):
    """Of six records one's responses are cut, one's prompt leaves no room."""
    long = {1: {"expert": "z" * 90}, 4: {"query": "how " * 30}}
    rows = []
    for line in write_records(tmp_path / "tea.jsonl", 6).read_text().splitlines():
        rows.append(json.loads(line) | long.get(len(rows), {}))
    data = tmp_path / "some.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ("align", tiny(), "--data", data, "--answers", "0", "-o")
    for way in ("--one-sided", "--two-sided"):
        out = tmp_path / way
        said = run(*told, out, way, "--max-length", "100").stderr
        assert "longest length: 100 tokens (--max-length); records cut there: 1; left out" in said
        record = json.loads((out / "training.json").read_text())
        assert record["length"] == {"left_out": 1, "cut": 1}
        assert record["settings"]["max_length"] == 100
    assert "longest length" not in run(*told, tmp_path / "whole").stderr
    record = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert record["settings"]["max_length"] == 512  # the positions that the model has
    assert "every prompt alone has 5 tokens" in refused(*told, tmp_path / "x", "--max-length", "5")
    assert not (tmp_path / "x").exists()


def test_a_base_that_computes_no_numbers_is_told_as_such(tiny, records, tmp_path):
    from safetensors.torch import save_file

    shutil.copytree(tiny(), tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    line = refused("align", tmp_path / "base", "--data", records, "-o", tmp_path / "out")
    assert "from the first step on: the base computes none" in line
    assert not (tmp_path / "out").exists()
