"""A quantised checkpoint as a plain one, where transformers can undo the quantisation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from alignvec.base.architecture import quiet, writer_of_text
from alignvec.base.checkpoint import TOLD_BY, CheckpointWeights, copy_config, told_quantisation
from alignvec.errors import AlignvecError, one_line, printable
from alignvec.files import read_object, write_text

_OF_CODES = r"scale|zero|qweight|packed|absmax"  # names of what a code is nothing without


def dequantise(source: Path, folder: Path) -> None:
    """Write the model of a quantised checkpoint into `folder`, in the dtype that its config names.

    Raises:
        AlignvecError: transformers cannot undo this quantisation, or not here.
    """
    said = told_quantisation(read_object(source / "config.json"))
    told = said if isinstance(said, dict) else {}
    older = "bitsandbytes" if "load_in_8bit" in told else "unknown method"
    method = printable(str(told.get("quant_method") or older))
    refusal = f"{source} is quantised ({method}), and a change cannot be told from its codes"
    # Of the others transformers passes over the scales, or keeps the codes.
    known = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    if known is None or "dequantize" not in signature(known.__init__).parameters:
        raise AlignvecError(f"{refusal}; give the model as it was before")
    stored = CheckpointWeights(source)
    try:
        _check_blocks(stored, told.get("weight_block_size"))
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
        config.quantization_config = {**told, "dequantize": True}
        with quiet():
            loaded: Any = writer_of_text(config).from_pretrained(
                source,
                config=config,
                dtype="auto",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
        model, info = loaded
        unread = [name for name in info["unexpected_keys"] if re.search(_OF_CODES, name)]
        codes = [name for name, value in model.named_parameters() if value.element_size() == 1]
        for names, what in (
            (info["missing_keys"], "missing"), (unread, "not read"), (codes, "without its scale"),
        ):  # fmt: skip
            if names:
                raise ValueError(f"{min(names)} is {what}")
        del model._weight_conversions  # or it would be saved as it was loaded: quantised
        model.save_pretrained(folder)
    except Exception as error:
        raise AlignvecError(
            f"{refusal}; transformers does not undo it here: {one_line(error)}"
        ) from error
    _forget(folder)
    copy_config(source, folder)


def _check_blocks(stored: CheckpointWeights, blocks: Any) -> None:
    """transformers cuts a weight evenly by the scales that there are. Where the last block is a
    smaller one, every scale but the first would be laid on the wrong rows.

    Raises:
        ValueError: a weight is no whole number of blocks.
    """
    if not isinstance(blocks, list) or len(blocks) != 2:
        return
    for key in stored:
        for scale in _scales_of(key):
            if scale not in stored or len(stored.shape(scale)) < 2:
                continue
            sides = zip(stored.shape(key)[-2:], stored.shape(scale)[-2:], blocks, strict=True)
            for size, count, block in sides:
                if count > 1 and count == math.ceil(size / block) and size % block:
                    raise ValueError(f"{key} of {size} is no whole number of blocks of {block}")


def _scales_of(key: str) -> Iterator[str]:
    """What the scales of an FP8 weight may be called, as transformers reads them."""
    yield f"{key}_scale_inv"
    module, _, part = key.rpartition(".")
    if part == "weight":
        yield from (f"{module}.scale", f"{module}.qscale_weight")


def _forget(folder: Path) -> None:
    """That it was quantised: transformers forgets it of the whole, not of a part of the config."""
    file = folder / "config.json"
    config = read_object(file)
    if told_quantisation(config) is not None:
        write_text(file, json.dumps(_without(config), indent=2) + "\n")  # some hold Infinity


def _without(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in TOLD_BY
    }
