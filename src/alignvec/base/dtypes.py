"""Dtypes: by the names that people give, and as a device likes them."""

from __future__ import annotations

import torch

from alignvec.errors import check_known


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
