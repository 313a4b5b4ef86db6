"""Deltas in 8 bits on disk: int8 values and, for every row, the float32 scale that they count.

A row is what lies along the last dimension; its scale is its largest magnitude over 127. Only
matrices (and stacks of them) are stored so: norms and biases are few values.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch

from alignvec.base.weights import Weights, all_finite
from alignvec.errors import AlignvecError
from alignvec.vector.delta import Delta, Dense, Lazy, parts
from alignvec.vector.stream import Output

# `NAME..scale` has the scales of NAME. PyTorch lets no module have an empty name, so no weight is
# called like this.
_SCALE = "..scale"


def fits(shape: tuple[int, ...]) -> bool:
    """Whether a delta of this shape is stored in int8."""
    return len(shape) > 1 and prod(shape) > 0


def quantised(name: str, delta: Delta) -> dict[str, Output]:
    """What a delta is stored as: `name` [..., n] in int8 and its scales [...] in float32."""
    shape = tuple(delta.shape)
    known: dict[tuple[int, int], torch.Tensor] = {}

    def values(start: int, stop: int) -> torch.Tensor:
        part = delta.part(start, stop).dense()
        known[start, stop] = scales = _scales(part)
        counts = part / torch.where(scales > 0, scales, 1)[..., None]  # a row of zeros has 0
        return counts.round_().clamp_(-127, 127).to(torch.int8)

    def all_scales(start: int, stop: int) -> torch.Tensor:
        for span in parts(shape):
            if span not in known:  # written before a restart, or by another thread, not yet
                known[span] = _scales(delta.part(*span).dense())
        return torch.cat([known[span] for span in parts(shape)])[start:stop]

    return {
        name: Output(shape, torch.int8, values),
        name + _SCALE: Output(shape[:-1], torch.float32, all_scales),
    }


def _scales(part: torch.Tensor) -> torch.Tensor:
    return part.abs().amax(-1) / 127


def is_scale(weights: Weights, name: str) -> bool:
    """Whether `name` has the scales of another tensor of `weights`."""
    owner = name.removesuffix(_SCALE)
    return owner != name and owner in weights and weights.dtype(owner) == torch.int8


def dequantised(weights: Weights, name: str, where: Path) -> Lazy:
    """An int8 delta, read as float32 when it is used; its scales are read now.

    Args:
        where: the folder, for messages.

    Raises:
        AlignvecError: the scales are missing or damaged.
    """
    shape, key = weights.shape(name), name + _SCALE
    if key not in weights:
        raise AlignvecError(f"{where}: {name} is int8 and has no scales")
    if not fits(shape) or weights.shape(key) != shape[:-1] or weights.dtype(key) != torch.float32:
        raise AlignvecError(f"{where}: the scales of {name} do not fit it")
    scales = weights[key]
    if not all_finite(scales) or bool((scales < 0).any()):
        raise AlignvecError(f"{where}: the scales of {name} are negative, NaN or infinite")

    def read(start: int, stop: int) -> Dense:
        return Dense(weights.rows(name, start, stop) * scales[start:stop, ..., None])

    return Lazy(shape, torch.int8, read, (weights,))
