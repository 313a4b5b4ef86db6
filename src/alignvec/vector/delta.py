"""The change of one weight tensor: dense, or as two low-rank factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dense:
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
    def between(cls, base: torch.Tensor, aligned: torch.Tensor) -> Dense | None:
        """aligned - base such that base + 1 * delta is aligned exactly; None if they are equal."""
        import torch

        base, aligned = base.float(), aligned.float()
        if torch.equal(base, aligned):
            return None
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

    def dense(self) -> torch.Tensor:
        """The delta in float32, shape of the weight."""
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

    def __add__(self, other: Delta) -> Dense:
        residuals = [
            part.residual
            for part in (self, other)
            if isinstance(part, Dense) and part.residual is not None
        ]
        total = None
        for residual in residuals:
            total = residual if total is None else (total + residual).coalesce()
        return Dense(self.dense() + other.dense(), total)

    def dot(self, other: Delta) -> float:
        return float((self.dense().double() * other.dense().double()).sum())


@dataclass(frozen=True)
class LowRank:
    """A delta as B A, or its transpose where the layer stores its weight as [in, out] (Conv1D).

    Attributes:
        a: [r, in].
        b: [out, r].
        transposed: whether the weight is [in, out].
    """

    a: torch.Tensor
    b: torch.Tensor
    transposed: bool = False

    @property
    def shape(self) -> torch.Size:
        import torch

        shape = (self.b.shape[0], self.a.shape[1])
        return torch.Size(reversed(shape) if self.transposed else shape)

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def dense(self) -> torch.Tensor:
        """The delta in float32, shape of the weight."""
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
        return LowRank(self.a, self.b * scale, self.transposed)

    def __add__(self, other: Delta) -> Delta:
        """Exact: the factors side by side, of the two ranks together."""
        import torch

        if isinstance(other, Dense) or other.transposed != self.transposed:
            return (
                Dense(self.dense() + other.dense())
                if not isinstance(other, Dense)
                else other + self
            )
        return LowRank(
            torch.cat([self.a, other.a]), torch.cat([self.b, other.b], 1), self.transposed
        )

    def dot(self, other: Delta) -> float:
        if isinstance(other, Dense) or other.transposed != self.transposed:
            return float((self.dense().double() * other.dense().double()).sum())
        # <B1 A1, B2 A2> = sum of (B1^T B2) * (A1 A2^T): r x r instead of out x in.
        inner = (self.b.double().T @ other.b.double()) * (self.a.double() @ other.a.double().T)
        return float(inner.sum())


Delta = Dense | LowRank
