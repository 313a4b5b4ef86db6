"""Dtypes: by the names that people give, and as a device likes them."""

from __future__ import annotations

import torch

from alignvec.errors import AlignvecError, check_known


def default_dtype(device: str) -> torch.dtype:
    """The dtype that `device` computes fastest in.

    A CPU needs bfloat16 instructions for it: without them (AVX2 alone) a bfloat16 forward pass of
    the embedded model takes about 7 times as long as in float32, and training far longer.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if torch.device(device).type == "cpu" and any(
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ):
        return torch.bfloat16
    return torch.float32


def find_device(name: str | None) -> str:
    """A device by the name that torch has for it; by default CUDA if there is one, else the CPU.

    Raises:
        AlignvecError: there is no such device here.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.zeros(1, device=name).item() == 0:  # no number comes back from "meta"
            return name
    except (RuntimeError, AssertionError, NotImplementedError):
        pass
    raise AlignvecError(f"there is no device '{name}' here; cpu, cuda, cuda:1, ...")


def parse_dtype(name: str | None, on_disk: bool = False) -> torch.dtype | None:
    """float32, bfloat16 or float16 as a torch dtype; None stays None.

    Args:
        on_disk: whether it is for deltas on disk, where int8 is one too.
    """
    if name is None:
        return None
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if on_disk:
        known["int8"] = torch.int8
    check_known("dtype", name, known)
    return known[name]
