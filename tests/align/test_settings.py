"""How far the weights travel, and what a run says of itself."""

import json

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


def test_the_rate_times_the_steps_is_bounded():
    assert AlignSettings().peak_learning_rate(304) == pytest.approx(0.016 / 38)
    assert AlignSettings().peak_learning_rate(301) == pytest.approx(0.016 / 38)  # 37.6 steps
    assert AlignSettings(epochs=2).peak_learning_rate(304) == pytest.approx(0.016 / 76)
    assert AlignSettings(batch_size=4).peak_learning_rate(304) == pytest.approx(0.016 / 76)
    assert AlignSettings().peak_learning_rate(128) == 1e-3  # 16 steps: the cap
    assert AlignSettings().peak_learning_rate(8) == 1e-3
    assert AlignSettings(method="full").peak_learning_rate(8) == 5e-6
    assert AlignSettings(method="full", learning_rate=0.1).peak_learning_rate(8) == 0.1


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_record_says_what_a_result_depends_on(method, tiny, pairs, tmp_path):
    settings = AlignSettings(method=method, epochs=2, batch_size=4)
    align(str(tiny()), pairs, tmp_path / "out", settings, provenance={"domain": "tea"})
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    told = record["settings"]
    assert told["learning_rate"] == settings.peak_learning_rate(24)
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
