"""How far the weights travel, and what a run says of itself."""

import json
import math
import statistics

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignvec.align import AlignSettings, align
from alignvec.base.dtypes import default_dtype
from alignvec.data import preference_pairs, read_records

ORDER = ["expert", "generic", "avoidance"]


@pytest.fixture
def pairs(records):
    return list(preference_pairs(read_records(records), ORDER))


def test_the_rate_times_the_steps_is_bounded_at_one_end():
    def rate(pairs, along=False, **changes):
        return AlignSettings(**changes).resolved(along, pairs).learning_rate

    assert rate(304) == pytest.approx(0.016 / 38)
    assert rate(301) == pytest.approx(0.016 / 38)  # 37.6 steps
    assert rate(304, epochs=2) == pytest.approx(0.016 / 76)
    assert rate(304, batch_size=4) == pytest.approx(0.016 / 76)
    assert rate(128) == 1e-3  # 16 steps: the cap
    assert rate(8) == 1e-3
    assert rate(304, along=True) == 1e-3  # its objective saturates by itself
    assert rate(8, method="full") == 5e-6
    assert rate(8, method="full", learning_rate=0.1) == 0.1


def test_steps_along_the_knob_are_small():
    """Two rows a step, B faster than A; the paper's way is left as it is."""

    def told(along, row, **changes):
        settings = AlignSettings(**changes).resolved(along, 24, row=row)
        return settings.batch_size, settings.ratio

    assert told(True, 3) == (6, 4.0)
    assert told(True, 2, batch_size=8, ratio=1) == (8, 1)
    assert told(False, 1) == (8, 1.0)


def test_what_is_left_open_suits_the_loss():
    def told(along, **changes):
        settings = AlignSettings(**changes).resolved(along, 8)
        return settings.loss, settings.beta, settings.likelihood

    assert told(False) == ("dpo", 0.1, 0.0)  # as in the paper
    assert told(True) == ("simpo", 10.0, 1.5)
    assert told(True, loss="ipo") == ("ipo", 0.1, 1.5)
    assert told(True, loss="dpo_norm", beta=2) == ("dpo_norm", 2, 1.5)
    assert told(False, likelihood=0.2) == ("dpo", 0.1, 0.2)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_record_says_what_a_result_depends_on(method, tiny, pairs, tmp_path):
    settings = AlignSettings(method=method, epochs=2, batch_size=4)
    align(str(tiny()), pairs, tmp_path / "out", settings, provenance={"domain": "tea"})
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    told = record["settings"]
    gain = statistics.median(
        float(weight.norm()) / math.sqrt(len(weight))
        for name, weight in load_file(tiny() / "model.safetensors").items()
        if "_proj" in name
    )
    rate = settings.resolved(False, 24, gain).learning_rate
    assert told["learning_rate"] == pytest.approx(rate, rel=2e-3)  # of bfloat16 weights, maybe
    assert (told["loss"], told["method"], told["epochs"], told["beta"]) == ("dpo", method, 2, 0.1)
    wanted = default_dtype("cuda" if torch.cuda.is_available() else "cpu")
    assert told["dtype"] == (str(wanted).removeprefix("torch.") if method == "lora" else "float32")
    assert record["domain"] == "tea"
    assert [entry["step"] for entry in record["curve"]] == list(range(1, 13))
    assert all(0 <= entry["accuracy"] <= 1 for entry in record["curve"])
    assert record["curve"][-1]["accuracy"] > 0
    assert record["curve"][0]["loss"] == pytest.approx(0.693, abs=0.01)  # the adapter is at zero
    assert record["seconds"] > 0


@pytest.mark.parametrize(
    ("architecture", "layer", "targets"),
    [
        ("llama", "model.layers", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                                   "down_proj"}),
        ("gpt2", "transformer.h", {"c_attn", "c_proj", "c_fc"}),
    ],
)  # fmt: skip
def test_the_adapter_is_on_every_linear_layer_of_the_upper_blocks(
    architecture, layer, targets, tiny, pairs, tmp_path
):
    """Half of two blocks: the upper one; its alpha is twice the rank; the head stays."""
    settings = AlignSettings(rank=4, layers=0.5)
    align(str(tiny(architecture)), pairs[:8], tmp_path / "half", settings)
    names = set(load_file(tmp_path / "half" / "adapter_model.safetensors"))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == targets
    assert all(f"{layer}.1." in name for name in names)
    config = json.loads((tmp_path / "half" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    align(str(tiny(architecture)), pairs[:8], tmp_path / "all", AlignSettings(rank=4, layers=1.0))
    every = set(load_file(tmp_path / "all" / "adapter_model.safetensors"))
    assert len(every) == 2 * len(names)
    base = AutoModelForCausalLM.from_pretrained(tiny(architecture))
    PeftModel.from_pretrained(base, tmp_path / "half")  # PEFT takes it as it is
