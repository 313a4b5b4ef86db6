"""An adapter by its hub id is the one in the folder that it stands for, and so is a bank."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model

from alignvec.base.load import load_checkpoint
from alignvec.vector.alignment_vector import AlignmentVector
from conftest import run


@pytest.fixture
def on_the_hub(tmp_path, monkeypatch):
    """Puts a folder where a download of `me/NAME` would have put it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    revision = "a" * 40

    def put(folder, name):
        place = tmp_path / "hub" / f"models--me--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(revision)
        shutil.copytree(folder, place / "snapshots" / revision)
        return f"me/{name}"

    return put


def adapter(base, folder, seed=0):
    torch.manual_seed(seed)
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(load_checkpoint(base, torch.float32), config).save_pretrained(folder)
    return folder


def test_an_adapter(tiny, tmp_path, on_the_hub):
    folder = adapter(tiny(), tmp_path / "lora")
    vector = AlignmentVector.extract(tiny(), on_the_hub(folder, "tea"))
    assert vector.name == "me/tea"
    assert vector.kind == "low_rank"
    assert vector == AlignmentVector.extract(tiny(), folder)


def test_a_bank(tiny, tmp_path, on_the_hub):
    for seed, knob in enumerate(("one", "two")):
        adapter(tiny(), tmp_path / "bank" / knob, seed)
    run("extract", tiny(), on_the_hub(tmp_path / "bank", "bank"), "-o", tmp_path / "out")
    for knob in ("one", "two"):
        vector = AlignmentVector.from_pretrained(tmp_path / "out" / knob)
        assert vector.name == knob
        assert vector == AlignmentVector.extract(tiny(), tmp_path / "bank" / knob)
