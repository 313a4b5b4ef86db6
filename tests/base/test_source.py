import os

import pytest
import torch

from alignvec.base.dtypes import default_dtype
from alignvec.base.load import load_base
from alignvec.base.prompts import render_chat
from alignvec.base.source import find_base
from alignvec.errors import AlignvecError


def test_a_gguf_file_is_converted_once(tiny, tmp_path, monkeypatch):
    """Any GGUF file; here the embedded one under another name."""
    from alignvec.base.source import _embedded_gguf

    monkeypatch.setenv("ALIGNVEC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\x00" * 100)
    with pytest.raises(AlignvecError, match="not a readable GGUF model"):
        find_base(str(tmp_path / "broken.gguf"))
    (tmp_path / "my model.gguf").symlink_to(_embedded_gguf())
    first = find_base(str(tmp_path / "my model.gguf"))
    assert (first / "model.safetensors").exists()
    assert find_base(str(tmp_path / "my model.gguf")) == first


def test_loading_says_what_where_and_how(tiny, caplog):
    caplog.set_level("INFO")
    base = load_base(str(tiny()), device="cpu")
    assert base.model.dtype == default_dtype("cpu")
    assert "LlamaForCausalLM" in caplog.text
    assert "on cpu" in caplog.text
    assert load_base(str(tiny()), "bfloat16", "cpu").model.dtype == torch.bfloat16


def test_a_model_without_a_chat_template_gets_plain_text(tiny):
    tokenizer = load_base(str(tiny())).tokenizer
    chat = [{"role": "user", "content": "why?"}]
    assert render_chat(tokenizer, chat) == "<user>why?</s><assistant>"
    tokenizer.chat_template = None
    assert render_chat(tokenizer, chat) == "why?\n\n"


def test_two_gguf_files_of_one_name_size_and_time_are_two(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNVEC_CACHE", str(tmp_path / "cache"))
    made = []

    def convert(file, folder):
        made.append(file)
        (folder / "weights").write_bytes(file.read_bytes())

    monkeypatch.setattr("alignvec.base.gguf.dequantise", convert)
    files = [tmp_path / name / "model.gguf" for name in ("one", "two")]
    for number, file in enumerate(files):
        file.parent.mkdir()
        file.write_bytes(bytes([number]))
        os.utime(file, ns=(10**18, 10**18))
    folders = [find_base(str(file)) for file in [*files, *files]]
    assert folders[:2] == folders[2:]
    assert [(folder / "weights").read_bytes() for folder in folders[:2]] == [b"\x00", b"\x01"]
    files[0].write_bytes(b"\x02")
    os.utime(files[0], ns=(10**18, 10**18))  # rewritten, and its time put back
    assert (find_base(str(files[0])) / "weights").read_bytes() == b"\x02"
    assert len(made) == 3


@pytest.mark.parametrize("device", ["", ",", "meta", "cuda:99", "cpu:x", "gpu"])
def test_a_device_that_is_not_there_is_named(device, tiny):
    with pytest.raises(AlignvecError, match=f"no device '{device}' here"):
        load_base(str(tiny()), device=device)
