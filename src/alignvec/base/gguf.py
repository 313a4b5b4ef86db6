"""A GGUF file as a Hugging Face checkpoint."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from alignvec.base.architecture import quiet
from alignvec.base.gguf_rope import FACTORS, restore_scaling
from alignvec.errors import AlignvecError, one_line, printable

_LAYER = re.compile(r"(?:blk|model\.layers)\.(\d+)\.")


def dequantise(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file into `folder`, in float32 safetensors.

    Raises:
        AlignvecError: transformers cannot read it, or not the whole of it; or it is a part of a
            model, or an adapter.
    """
    try:
        model, tokenizer = _read(file)
    except AlignvecError:
        raise
    except Exception as error:  # the GGUF reader raises whatever a broken byte leads to
        raise AlignvecError(f"{file} is not a readable GGUF model: {one_line(error)}") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read(file: Path) -> tuple[Any, Any]:
    """The model, in float32, and its tokenizer."""
    reader = GGUFReader(file)
    told = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("tokenizer.")  # long lists
    }
    _check_kind(file, told)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    with quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
        )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        # transformers starts these at random.
        raise AlignvecError(f"{file} is incomplete: {printable(missing[0])} is not in it")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    unread = _unread(model, told, tensors, info["unexpected_keys"])
    if others := sorted(unread - {FACTORS}):
        raise AlignvecError(
            f"{file}: transformers does not read {printable(others[0])}, so the model would "
            "compute otherwise; give it as safetensors"
        )
    restore_scaling(file, model, told, tensors[FACTORS] if FACTORS in unread else None)
    return model, tokenizer


def _check_kind(file: Path, told: Mapping[str, Any]) -> None:
    if told.get("general.type") == "adapter":
        raise AlignvecError(
            f"{file} is a LoRA adapter for llama.cpp (its general.type is 'adapter'), not a model; "
            "give the PEFT adapter that it was made from"
        )
    if (count := told.get("split.count", 1)) > 1:
        raise AlignvecError(
            f"{file} is part {told.get('split.no', 0) + 1} of {count} of a model; join them "
            "(llama-gguf-split --merge) and give the whole file"
        )


def _unread(
    model: Any, told: Mapping[str, Any], names: Collection[str], unexpected: set[str]
) -> set[str]:
    """The tensors of a file that are in no weight of the model, though it needs them.

    Args:
        unexpected: those that transformers tells of; its older reader passes over them.
    """
    architecture = told["general.architecture"]
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    try:
        known = get_gguf_hf_weights_map(model, processor)
    except NotImplementedError:  # only the newer one reads this architecture
        unread = unexpected
    else:  # experts are known without the ending
        unread = {n for n in names if n not in known and n.removesuffix(".weight") not in known}
    ahead = f"{architecture}.nextn_predict_layers" in told  # layers that only guess the next tokens
    last = model.config.num_hidden_layers
    return {n for n in unread if not (ahead and (at := _LAYER.match(n)) and int(at[1]) >= last)}
