"""A base ready to run: its model, its tokenizer, its name."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from alignvec.base.architecture import quiet, writer_of_text
from alignvec.base.checkpoint import checkpoint_files
from alignvec.base.dtypes import default_dtype, find_device, parse_dtype
from alignvec.base.source import base_name, find_base
from alignvec.errors import AlignvecError, one_line

logger = logging.getLogger(__name__)


@dataclass
class Base:
    """A model ready to run, with what it takes to talk to it."""

    name: str  # what the user called it; never a path of this machine
    folder: Path  # a Hugging Face checkpoint in safetensors
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_base(base: str, dtype: str | None = None, device: str | None = None) -> Base:
    """Load a base for running or training, and log what was loaded.

    Args:
        base: "embedded", a checkpoint folder, a `.gguf` file, or a hub id (`org/name[@revision]`).
        dtype: float32, bfloat16 or float16; by default the fastest that this device computes in.
        device: as torch names it; by default CUDA if there is one, else the CPU.

    Raises:
        AlignvecError: the base is missing, offline, incomplete or unreadable, or the device is not
            there.
    """
    device = find_device(device)
    folder = find_base(base)
    model = load_checkpoint(folder, parse_dtype(dtype) or default_dtype(device)).to(device)
    tokenizer = load_tokenizer(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "base %s: %s, %.0fM parameters, %s on %s",
        base_name(base),
        type(model).__name__,
        parameters / 1e6,
        str(model.dtype).removeprefix("torch."),
        device,
    )
    return Base(base_name(base), folder, model, tokenizer)


def load_checkpoint(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal LM from a folder of safetensors, every weight accounted for, in eval mode."""
    if (folder / "adapter_config.json").exists():
        raise AlignvecError(
            f"{folder} holds adapter_config.json beside a model, and transformers would look for "
            "that adapter; move the file away"
        )
    if not (folder / "config.json").exists():
        raise AlignvecError(f"{folder} has no config.json; is it a checkpoint folder?")
    checkpoint_files(folder)
    if not sys.stderr.isatty():
        hf_logging.disable_progress_bar()
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
            if hasattr(config, "rescale_every"):
                # RWKV divides weights of its upper layers at its first pass, against overflows in
                # float16; a change that is added to them, or taken back, is then another one.
                config.rescale_every = 0
            loaded: Any = writer_of_text(config).from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # a broken file raises one of a dozen types
        raise AlignvecError(f"{folder} cannot be loaded: {one_line(error)}") from error
    model, info = loaded
    for problem in ("missing_keys", "mismatched_keys"):
        if info.get(problem):
            names = sorted(str(name) for name in info[problem])
            raise AlignvecError(
                f"{folder} is incomplete: {len(names)} {problem.replace('_', ' ')}, "
                f"first {names[0]}"
            )
    return model.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder; its padding token is set if it had none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise AlignvecError(f"{folder} has no readable tokenizer: {one_line(error)}") from error
    if tokenizer.pad_token is None:  # any will do: what it fills is masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer
