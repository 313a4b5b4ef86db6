"""What training wraps a model in: a live one, and the mark it leaves in the names of tensors."""

from __future__ import annotations

import re

import torch

from alignvec.errors import AlignvecError

# torch.compile, FSDP and activation checkpointing wrap any module; data parallelism the whole.
_WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_WHOLE = re.compile(r"^(module\.)+")


def unwrapped(name: str) -> str:
    """A tensor's name without the names of wrappers: `_orig_mod.lm_head.weight` is the head's."""
    return _WHOLE.sub("", _WRAPPERS.sub("", name))


def plain_model(model: torch.nn.Module) -> torch.nn.Module:
    """A live model without what it is wrapped in to run compiled or on several devices.

    Raises:
        AlignvecError: it has an adapter on it, or codes in the place of its weights.
    """
    while len(model._modules) == 1:
        name, inner = next(iter(model._modules.items()))
        if inner is None or unwrapped(f"{name}.x") != "x":
            break
        model = inner
    if hasattr(model, "merge_and_unload") or any(
        "base_layer" in module._modules for module in model.modules()
    ):
        raise AlignvecError(
            f"the live {type(model).__name__} has an adapter of PEFT on it; save that with "
            "save_pretrained and give its folder, or take what merge_and_unload() returns"
        )
    if getattr(model, "is_quantized", False):
        method = str(getattr(model, "quantization_method", "")).rpartition(".")[2].lower()
        raise AlignvecError(
            f"the live {type(model).__name__} is quantised ({method or 'unknown method'}), and a "
            "change cannot be told from its codes; give the model as it was before"
        )
    return model
