"""Where an adapter goes, and how much the layers there make of their inputs."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignvec.align.settings import GAIN, AlignSettings
from alignvec.base.architecture import Architecture
from alignvec.errors import AlignvecError


def lora_config(
    model: PreTrainedModel, linear: Mapping[str, Any], settings: AlignSettings, rank: int
) -> LoraConfig:
    """An adapter of all knobs on every linear layer of the upper `settings.layers` of the blocks.

    The gradient then stops at the lowest of them: the blocks below cost no backward pass.

    Args:
        linear: see `linear_layers`.
    """
    depth = model.config.get_text_config().num_hidden_layers
    first = min(depth - 1, round(depth * (1 - settings.layers)))
    # By full names: the ends of those of a language model are those of the eyes beside it, too.
    targets = [name for name in linear if first <= _layer(name, first)]
    if not targets:
        raise AlignvecError("the model has no linear layers for an adapter; --method full")
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=sorted(targets), task_type="CAUSAL_LM"
    )


def linear_layers(model: PreTrainedModel) -> dict[str, Any]:
    """The linear layers that a text goes through and that are asked for their output, by name.

    Found out by trying, once with few tokens: of layers that differ by numbers alone (experts) one
    stands for all. Not the output head, nor what PEFT would take for something else.
    """
    called: set[str] = set()
    named = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and module is not model.get_output_embeddings()
    }

    def note(kind: str) -> Any:
        def noted(_: Any, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):  # a router may be a linear layer that makes more
                called.add(kind)

        return noted

    handles = [module.register_forward_hook(note(_kind(name))) for name, module in named.items()]
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([[0, 1, 2]], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    known = Architecture(model)
    return {
        name: module
        for name, module in named.items()
        if _kind(name) in called
        and not known.reads_past(name)
        and not known.peft_takes_for_expert(name)
    }


def _kind(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".#", name)


def _layer(name: str, default: int) -> int:
    """The number of the block that a module lies in."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else default - 1 if default else 0


def gain(linear: Mapping[str, Any]) -> float:
    """How much larger a linear layer's output is than its input, both as root mean squares.

    For an input without a direction of its own it is the norm of the weight over the square root of
    the outputs; of the layers of a model (`linear_layers`) the median.
    """
    gains = [
        float(module.weight.detach().norm()) / math.sqrt(_width_out(module))
        for module in linear.values()
    ]
    return statistics.median(gains) if gains else GAIN


def _width_out(module: Any) -> int:
    return int(module.weight.shape[0 if isinstance(module, torch.nn.Linear) else 1])
