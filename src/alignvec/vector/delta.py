"""The change of one weight tensor: dense, two low-rank factors, or lazy: read when asked for.

All three can be taken in parts along the first dimension, so that no operation on a vector has to
hold a whole tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch

from alignvec.base.weights import Weights, all_finite, row_count
from alignvec.errors import AlignvecError

PART = 2**19  # values that are worked on at a time: few enough to stay in a cache


def parts(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Row ranges (start, stop) that cut a tensor into pieces of about `PART` values.

    None of a tensor without values, even if it has 10**18 empty rows.
    """
    rows = row_count(shape) if prod(shape) else 0
    step = max(1, PART // max(1, prod(shape[1:])))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def is_computable(dtype: torch.dtype) -> bool:
    """Whether deltas may be of it: floats that torch multiplies, so not those of 8 bits."""
    return dtype.is_floating_point and dtype.itemsize > 1


class Delta(ABC):
    """theta' - theta of one weight. `shape` is that of the weight."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size: ...

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of what is stored; arithmetic is in float32."""

    @abstractmethod
    def part(self, start: int, stop: int) -> Dense | LowRank:
        """Rows `start` to `stop`, in memory."""

    @abstractmethod
    def __mul__(self, scale: float) -> Delta: ...

    @abstractmethod
    def __add__(self, other: Delta) -> Delta: ...

    def in_memory(self) -> Dense | LowRank:
        return self.part(0, row_count(self.shape))

    def dense(self) -> torch.Tensor:
        """The delta in float32, shape of the weight."""
        return self.in_memory().dense()

    def dot(self, other: Delta) -> float:
        """The inner product, summed in float64."""
        total = 0.0
        for start, stop in parts(self.shape):
            mine, its = (delta.part(start, stop).dense().double() for delta in (self, other))
            total += float((mine * its).sum())
        return total


@dataclass(frozen=True)
class Dense(Delta):
    """A delta as it is.

    Attributes:
        values: theta' - theta, the shape of the weight, any floating dtype.
        residual: what float32 could not hold of theta' - theta where that matters (where
            theta + values is not theta'), as a sparse float32 tensor. It happens where a weight
            moved close to zero from far away. None where nothing is missing.
    """

    values: torch.Tensor
    residual: torch.Tensor | None = None

    @classmethod
    def between(cls, base: torch.Tensor, aligned: torch.Tensor) -> Dense:
        """aligned - base such that base + 1 * delta is aligned exactly."""
        base, aligned = base.float(), aligned.float()
        values = aligned - base
        missed = (base + values != aligned).nonzero()
        if not len(missed):
            return cls(values)
        at = tuple(missed.T)
        # Near cancellation base + values is exact in float64, and what it misses is a float32.
        error = aligned[at].double() - (base[at].double() + values[at].double())
        residual = torch.sparse_coo_tensor(
            missed.T, error.float(), base.shape, check_invariants=True
        )
        return cls(values, residual.coalesce())

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def part(self, start: int, stop: int) -> Dense:
        if (start, stop) == (0, row_count(self.shape)):
            return self
        return Dense(self.values[start:stop], part_of_sparse(self.residual, start, stop))

    def dense(self) -> torch.Tensor:
        return self.values.float()

    def add_to(self, weight: torch.Tensor, strength: float) -> None:
        """weight += strength * delta, in place. `weight` is float32."""
        if self.residual is None:
            weight.add_(self.values.to(weight.device, weight.dtype), alpha=strength)
            return
        at = tuple(self.residual.indices().to(weight.device))
        exact = (
            weight[at].double()
            + strength * self.values.to(weight.device)[at].double()
            + strength * self.residual.values().to(weight.device).double()
        )
        weight.add_(self.values.to(weight.device, weight.dtype), alpha=strength)
        weight[at] = exact.to(weight.dtype)

    def __mul__(self, scale: float) -> Dense:
        # Not through float32: a bfloat16 delta stays one.
        residual = None if self.residual is None else (self.residual * scale).coalesce()
        return Dense(self.values * scale, residual)

    def __add__(self, other: Delta) -> Delta:
        if isinstance(other, Lazy):
            return other + self
        residuals = [
            delta.residual
            for delta in (self, other)
            if isinstance(delta, Dense) and delta.residual is not None
        ]
        total = None
        for residual in residuals:
            total = residual if total is None else (total + residual).coalesce()
        return Dense(self.dense() + other.dense(), total)


@dataclass(frozen=True)
class LowRank(Delta):
    """A delta as B A, or its transpose where the layer stores its weight as [in, out] (Conv1D).

    Attributes:
        a: [r, in].
        b: [out, r].
        transposed: whether the weight is [in, out].
        energy: the share of the squared norm that a compression kept; None of an exact delta.
    """

    a: torch.Tensor
    b: torch.Tensor
    transposed: bool = False
    energy: float | None = None

    def check(self, where: str) -> None:
        """Refuse factors as a file may hold them; `where` begins the message.

        Raises:
            AlignvecError: they do not fit each other, are no floating numbers, or not finite.
        """
        a, b = self.a, self.b
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise AlignvecError(f"{where}: the factors do not fit each other")
        if not (a.numel() and b.numel()):
            raise AlignvecError(f"{where}: the factors are empty")
        for factor in (a, b):
            if not is_computable(factor.dtype):
                raise AlignvecError(f"{where}: the factors are {factor.dtype}")
            if not all_finite(factor):
                raise AlignvecError(f"{where} holds NaN or infinity")

    @property
    def shape(self) -> torch.Size:
        shape = (self.b.shape[0], self.a.shape[1])
        return torch.Size(reversed(shape) if self.transposed else shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.b.dtype

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def part(self, start: int, stop: int) -> LowRank:
        if self.transposed:
            return LowRank(self.a[:, start:stop], self.b, True)
        return LowRank(self.a, self.b[start:stop])

    def in_memory(self) -> LowRank:
        return self

    def dense(self) -> torch.Tensor:
        product = self.b.float() @ self.a.float()
        return product.T if self.transposed else product

    def add_to(self, weight: torch.Tensor, strength: float) -> None:
        """weight += strength * B A, in place, without building the product. `weight` is float32."""
        target = weight.T if self.transposed else weight
        target.addmm_(
            self.b.to(weight.device, weight.dtype),
            self.a.to(weight.device, weight.dtype),
            alpha=strength,
        )

    def __mul__(self, scale: float) -> LowRank:
        return LowRank(self.a, self.b * scale, self.transposed, self.energy)

    def __add__(self, other: Delta) -> Delta:
        """Of two of a kind exact: the factors side by side, of the two ranks together."""
        if not isinstance(other, LowRank):
            return other + self
        if other.transposed != self.transposed:
            return Dense(self.dense() + other.dense())
        return LowRank(
            torch.cat([self.a, other.a]), torch.cat([self.b, other.b], 1), self.transposed
        )

    def dot(self, other: Delta) -> float:
        if not isinstance(other, LowRank) or other.transposed != self.transposed:
            return super().dot(other)
        # <B1 A1, B2 A2> = sum of (B1^T B2) * (A1 A2^T): r x r instead of out x in.
        inner = (self.b.double().T @ other.b.double()) * (self.a.double() @ other.a.double().T)
        return float(inner.sum())


@dataclass(frozen=True)
class Lazy(Delta):
    """A delta that is read or computed a part at a time, from files or from other deltas.

    Attributes:
        read: (start, stop) -> those rows.
        origin: what its values follow from: words, weights and other deltas. Empty where that is
            not known.
    """

    size: tuple[int, ...]
    stored: torch.dtype
    read: Callable[[int, int], Dense | LowRank]
    origin: tuple[str | Weights | Delta, ...] = ()

    @classmethod
    def between(cls, base: Weights, base_name: str, aligned: Weights, name: str) -> Lazy:
        """aligned - base of one weight, read from both when asked for."""

        def read(start: int, stop: int) -> Dense:
            theirs = aligned.rows(name, start, stop)
            return Dense.between(base.rows(base_name, start, stop).to(theirs.device), theirs)

        return cls(
            base.shape(base_name), torch.float32, read, (aligned, name, "-", base, base_name)
        )

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.size)

    @property
    def dtype(self) -> torch.dtype:
        return self.stored

    def part(self, start: int, stop: int) -> Dense | LowRank:
        return self.read(start, stop)

    def in_memory(self) -> Dense | LowRank:
        whole = super().in_memory()
        if isinstance(whole, Dense) and not self.size:  # one row of one value
            return Dense(whole.values.reshape(()), whole.residual)
        return whole

    def __mul__(self, scale: float) -> Lazy:
        def read(start: int, stop: int) -> Dense | LowRank:
            return self.read(start, stop) * scale

        return Lazy(self.size, self.stored, read, (self, f"* {scale!r}"))

    def __add__(self, other: Delta) -> Lazy:
        def read(start: int, stop: int) -> Dense | LowRank:
            total = self.read(start, stop) + other.part(start, stop)
            assert isinstance(total, Dense | LowRank)
            return total

        return Lazy(self.size, torch.float32, read, (self, "+", other))


def part_of_sparse(sparse: torch.Tensor | None, start: int, stop: int) -> torch.Tensor | None:
    """Rows `start` to `stop` of a coalesced sparse tensor; None if nothing lies there."""
    if sparse is None:
        return None
    indices = sparse.indices()
    first, last = torch.searchsorted(indices[0].contiguous(), torch.tensor([start, stop])).tolist()
    if first == last:
        return None
    moved = indices[:, first:last].clone()
    moved[0] -= start
    return torch.sparse_coo_tensor(
        moved,
        sparse.values()[first:last],
        (stop - start, *sparse.shape[1:]),
        is_coalesced=True,
        check_invariants=True,
    )


Weighted = Sequence[tuple[Delta, float]]  # deltas of one weight, each with its strength


def folded(theta: torch.Tensor, weighted: Weighted, start: int, stop: int) -> torch.Tensor:
    """Rows of theta + sum_k lambda_k tau_k in float32: the one sum behind every way of folding.

    Args:
        theta: rows `start` to `stop` of the weight, any floating dtype. Overwritten if float32.
    """
    total = theta.float()
    for delta, strength in weighted:
        delta.part(start, stop).add_to(total, strength)
    return total
