"""The weights of a checkpoint or a model: a mapping from name to tensor, readable in rows."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import Any

import torch

_SAMPLES = 64  # values of a tensor that go into the fingerprint
_SMALL = 2**18  # values of a tensor that goes into the detail as a whole
_TABLE = 2**14  # rows from which on one is a vocabulary, where single rows are trained


class Weights(Mapping[str, torch.Tensor]):
    """Tensors by name. Shapes and dtypes are known before anything is read.

    Attributes:
        tied: a name that shares the tensor of another -> that other. It can be read too, but is not
            among the names.
        transposed: the weights stored as [in, out] (Conv1D); None where that is not known.
        beside: names of what lies in its files and transformers does not load: masks and rotary
            tables of older uploads.
        architecture: the `Architecture` of the model; None if transformers does not know it.
    """

    tied: Mapping[str, str] = MappingProxyType({})
    transposed: frozenset[str] | None = None
    beside: frozenset[str] = frozenset()
    architecture: Any = None

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
        return tuple(self._entries[self.tied.get(name, name)].shape)

    def dtype(self, name: str) -> torch.dtype:
        dtype: torch.dtype = self._entries[self.tied.get(name, name)].dtype
        return dtype

    def names(self, others: Iterable[str]) -> dict[str, str]:
        """The name here of each tensor that a file, a vector or an adapter has another name for."""
        return {name: name for name in others}

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
        return self._sampled(lambda shape: _SAMPLES)

    @cached_property
    def detail(self) -> str:
        """A hash of more than the fingerprint sees: of small tensors every value, of a vocabulary
        one of every row. So two bases differ in it of which one has a few rows trained further.
        """

        def count(shape: tuple[int, ...]) -> int:
            size = prod(shape)
            rows = shape[0] if shape and shape[0] >= _TABLE else 0
            return size if size <= _SMALL else max(_SAMPLES, rows)

        return self._sampled(count)

    def _sampled(self, count: Callable[[tuple[int, ...]], int]) -> str:
        digest = hashlib.sha256()
        for name in sorted(self):
            shape = self.shape(name)
            digest.update(f"{name}{shape}".encode())
            sample = self.sample(name, count(shape)).to(torch.bfloat16)
            digest.update(sample.view(torch.int16).cpu().numpy().tobytes())
        return digest.hexdigest()[:32]

    @property
    def fingerprints(self) -> Iterator[str]:
        """Those that a vector of this base may have: the one of today, and that of 0.1."""
        yield self.fingerprint

    @property
    def state(self) -> str:
        """A hash that is another one as soon as any value is. It reads all of them."""
        digest = hashlib.sha256()
        for name in sorted(self):
            digest.update(f"{name}{self.shape(name)}{self.dtype(name)}".encode())
            digest.update(tensor_bytes(self[name]))
        return digest.hexdigest()[:32]


def tensor_bytes(tensor: torch.Tensor) -> Any:
    """The values of a tensor as a buffer, for a hash or a file."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


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
