"""Training: what TRL computes, computed once a query; runs that are killed go on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from alignvec.align import LOSSES, AlignSettings, align
from alignvec.align.curriculum import pairs_along
from alignvec.align.pairs import pairs_dataset
from alignvec.align.trainer import SharedPromptTrainer
from alignvec.data import LEVELS, preference_pairs, read_records
from alignvec.data.line import spaced
from alignvec.errors import AlignvecError
from alignvec.vector.alignment_vector import AlignmentVector
from conftest import run, write_records

ORDER = ["expert", "generic", "avoidance"]


@pytest.fixture
def pairs(records):
    return list(preference_pairs(read_records(records), ORDER))


def trainer(cls, base, pairs, folder, **options):
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig

    tokenizer = AutoTokenizer.from_pretrained(base)
    targets = ["in_proj"] if "mamba" in base.name else "all-linear"
    return cls(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=DPOConfig(
            output_dir=str(folder), per_device_train_batch_size=8, bf16=False, use_cpu=True,
            gradient_checkpointing=False, report_to="none", learning_rate=1e-2, max_steps=4,
            train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", **options,
        ),
        train_dataset=pairs_dataset(pairs, tokenizer, 0, folder),
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
    assert not (tmp_path / "aligned.checkpoints").exists()
    vector = AlignmentVector.extract(tiny(), out)
    assert vector.kind == ("low_rank" if method == "lora" else "full")
    assert vector.training["pairs"] == 24
    with pytest.raises(AlignvecError, match="already exists"):
        align(str(tiny()), pairs, out, settings)


def test_every_loss_we_name_trains_along_the_knob_and_at_one_end(tiny, records, pairs, tmp_path):
    some = list(read_records(records))[:4]
    along = pairs_along({"tea": some}, spaced(LEVELS), passes=1)
    assert len(along) == len(pairs[:8])
    for name in LOSSES:
        for way, given in (("along", along), ("one", pairs[:8])):
            out = tmp_path / name / way
            knobs = ["tea"] if way == "along" else []
            align(str(tiny()), given, out, AlignSettings(loss=name), knobs=knobs)
            assert len(json.loads((out / "training.json").read_text())["curve"]) == 1


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
        "-o",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "alignvec", *map(str, command), str(out)], stderr=subprocess.DEVNULL
    )
    work = tmp_path / "aligned.checkpoints"
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
