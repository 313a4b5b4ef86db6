"""A GGUF file as a Hugging Face checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from alignvec.errors import AlignvecError, one_line


def dequantise(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file into `folder`, in float32 safetensors.

    Raises:
        AlignvecError: transformers cannot read it.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    except Exception as error:  # the GGUF reader raises whatever a broken byte leads to
        raise AlignvecError(f"{file} is not a readable GGUF model: {one_line(error)}") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
