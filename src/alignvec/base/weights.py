"""The weights of a checkpoint or a model: a mapping from name to tensor, readable in rows."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from typing import Any

import torch

_SAMPLES = 64  # values of a tensor that go into the fingerprint


class Weights(Mapping[str, torch.Tensor]):
    """Tensors by name. Shapes and dtypes are known before anything is read."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        """Args: entries: name -> anything with the `shape` and `dtype` of that tensor."""
        self._entries = entries

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.rows(name, 0, row_count(self.shape(name))).reshape(self.shape(name))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entries[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        dtype: torch.dtype = self._entries[name].dtype
        return dtype

    def nbytes(self, name: str) -> int:
        return prod(self.shape(name)) * self.dtype(name).itemsize

    @abstractmethod
    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """[stop - start, ...]: a piece of a tensor along its first dimension.

        A tensor without dimensions counts as one row and comes back as [1].
        """

    @abstractmethod
    def sample(self, name: str, count: int) -> torch.Tensor:
        """About `count` values evenly spaced over a tensor, flat."""

    @cached_property
    def fingerprint(self) -> str:
        """A short hash that tells one base from another, whatever floating dtype it is held in.

        Names, shapes and 64 evenly spaced values a tensor, rounded to bfloat16: a float32 base and
        its bfloat16 copy agree, another model or a further fine-tuned one does not. It reads a few
        bytes of each tensor, so it is as quick for 70B parameters as for 70M. It guards against
        mistakes, not against forgery.
        """
        digest = hashlib.sha256()
        for name in sorted(self):
            digest.update(f"{name}{self.shape(name)}".encode())
            sample = self.sample(name, _SAMPLES).to(torch.bfloat16)
            digest.update(sample.view(torch.int16).cpu().numpy().tobytes())
        return digest.hexdigest()[:32]


def row_count(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite, without a mask of the tensor's size."""
    if not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # 8-bit floats know no order
    least, greatest = tensor.aminmax()  # both are NaN if any value is
    return bool(least.isfinite() & greatest.isfinite())
