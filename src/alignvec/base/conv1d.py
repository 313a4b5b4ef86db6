"""Which weights are stored as [in, out]: those of transformers' Conv1D, as in GPT-2."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignvec.base.source import find_base
from alignvec.files import read_object


def transposed_weights(base: str | Path | PreTrainedModel, names: Iterable[str]) -> frozenset[str]:
    """Those of `names` that are stored as [in, out]: weights of transformers' Conv1D, as in GPT-2.

    None where the architecture is not known.
    """
    if isinstance(base, str | Path):
        file = find_base(str(base)) / "config.json"
        transposed = _conv1d_weights_of_type(
            str(read_object(file).get("model_type")) if file.exists() else ""
        )
    else:
        transposed = _conv1d_weights(base)
    return frozenset(name for name in names if _layer_pattern(name) in transposed)


@cache
def _conv1d_weights_of_type(model_type: str) -> frozenset[str]:
    """Of a small model of that type, without weights: its layers are all alike.

    The sizes are not those of the checkpoint's own config: it could ask for any number of layers.
    """
    try:
        config = AutoConfig.for_model(model_type, num_hidden_layers=2)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # unknown, or not to be built this way: one of a dozen types
        return frozenset()
    return _conv1d_weights(model)


def _conv1d_weights(model: PreTrainedModel) -> frozenset[str]:
    return frozenset(
        _layer_pattern(f"{name}.weight")
        for name, module in model.named_modules()
        if isinstance(module, Conv1D)
    )


def _layer_pattern(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)
