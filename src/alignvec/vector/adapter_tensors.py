"""The tensors in the file of a PEFT adapter: what each of them is to which module."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from alignvec.base.checkpoint import CheckpointWeights
from alignvec.base.wrappers import unwrapped
from alignvec.errors import AlignvecError
from alignvec.vector.adapter_config import MERGE

TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# PEFT leaves the adapter's name out when it saves; a state dict saved by hand has it.
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>(embedding_)?[AB]|magnitude_vector)(\.(?P<adapter>[^.]+))??"
    r"(\.(?P<kind>weight|bias))?"
)
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.[^.]+)?")
_PEFT_MODULES = re.compile(r"\.(base_layer|token_adapter|modules_to_save\.[^.]+)(?=\.)")
# Of no weight: what VeLoRA compresses activations with, and a base's own beside a trained copy.
_ASIDE = re.compile(r"\.(lora_velora_embed|original_module)\b")
_COPY = ".modules_to_save"


@dataclass
class Trained:
    """What an adapter holds for one module.

    Attributes:
        factors: `A`, `B`, `magnitude_vector`, `embedding_A`, `embedding_B`, `B.bias` -> tensor.
        tokens: [n, width], new rows of an embedding.
    """

    factors: dict[str, torch.Tensor] = field(default_factory=dict)
    tokens: torch.Tensor | None = None


def sorted_out(file: Path, weights: CheckpointWeights) -> tuple[dict[str, Trained], dict[str, str]]:
    """Modules with what was trained of them, and tensors that were trained whole: name -> key."""
    modules: dict[str, Trained] = {}
    whole: dict[str, str] = {}
    adapters = set()
    names = {unwrapped(key.removeprefix(_PREFIX)): key for key in weights}
    for name, key in names.items():
        if not key.startswith(_PREFIX):
            raise AlignvecError(f"{file}: {key} is no name that PEFT gives")
        # Some trained copies PEFT saves a second time, by where it keeps them.
        again = _COPY in name and name.replace(_COPY, "") in names
        if again or _ASIDE.search(name):
            continue
        if factor := _FACTOR.fullmatch(name):
            adapters.add(factor["adapter"])
            part = factor["part"] + (".bias" if factor["kind"] == "bias" else "")
            modules.setdefault(factor["module"], Trained()).factors[part] = weights[key]
        elif tokens := _TOKENS.fullmatch(name):
            modules.setdefault(tokens["module"], Trained()).tokens = weights[key]
        elif ".lora_" in name:
            raise AlignvecError(f"{file}: {key} is no factor of LoRA; {MERGE}")
        else:
            whole[_PEFT_MODULES.sub("", name)] = key
    if len(adapters) > 1:
        known = ", ".join(sorted(str(name) for name in adapters))
        raise AlignvecError(f"{file} holds several adapters ({known}); save one alone")
    return modules, whole
