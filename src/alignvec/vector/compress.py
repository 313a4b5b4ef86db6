"""Compress a vector: each linear weight's delta by its largest singular values."""

from __future__ import annotations

import dataclasses
import math
from fnmatch import fnmatchcase

import torch

from alignvec.errors import AlignvecError, one_line
from alignvec.progress import progress
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import Delta, LowRank

# Two-dimensional, but looked up by row rather than multiplied: an adapter on them means another
# thing to PEFT, and a vocabulary's deltas are rarely of low rank.
_TABLES = ("*embed*", "*wte*", "*wpe*", "*shared.weight")


def compress(
    vector: AlignmentVector,
    rank: int | None = None,
    energy: float | None = None,
    drop_rest: bool = False,
) -> AlignmentVector:
    """The best low-rank copy of every linear weight's delta (truncated SVD); the rest stays dense.

    Args:
        rank: at most so many singular values a weight.
        energy: as few as keep this share (0 to 1] of a weight's squared norm. With `rank` too,
            whichever is reached first.
        drop_rest: leave out what cannot be factored (norms, biases, embeddings, fused experts), so
            that the vector is a PEFT adapter and nothing else.

    Returns:
        A vector in memory; `LowRank.energy` says what each weight kept.

    Raises:
        AlignvecError: neither rank nor energy is given, or one is out of range.
    """
    if rank is None and energy is None:
        raise AlignvecError("how far to compress? give a rank or a share of energy")
    if rank is not None and rank < 1:
        raise AlignvecError(f"rank must be at least 1, not {rank}")
    if energy is not None and not 0 < energy <= 1:
        raise AlignvecError(f"energy is a share, above 0 and at most 1, not {energy}")
    deltas: dict[str, Delta] = {}
    with progress("compressing", "weight", len(vector.deltas)) as bar:
        for name, delta in vector.deltas.items():
            if can_factor(name, delta):
                deltas[name] = factor(delta, rank, energy, name in vector.transposed)
            elif not drop_rest:
                deltas[name] = delta
            bar.update()
    return dataclasses.replace(vector, deltas=deltas)


def can_factor(name: str, delta: Delta) -> bool:
    """Whether a delta is that of a linear layer, judged by its shape and name."""
    table = any(fnmatchcase(name, pattern) for pattern in _TABLES)
    linear = len(delta.shape) == 2 and delta.shape.numel() > 0
    return linear and not table and name.endswith(".weight")


def factor(
    delta: Delta, rank: int | None, energy: float | None, transposed: bool = False
) -> LowRank:
    """B A of at most `rank`, or of the least rank that keeps `energy`; sqrt(sigma) on each side.

    Args:
        transposed: the weight is stored as [in, out].
    """
    try:
        u, sigma, v, total = _decompose(delta, rank if energy is None else None, transposed)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise AlignvecError(f"a delta cannot be compressed: {one_line(error)}") from error
    if not (math.isfinite(total) and sigma.isfinite().all()):
        raise AlignvecError("a delta to compress holds NaN or infinity, or is near it")
    if isinstance(delta, LowRank):
        transposed = delta.transposed
    kept = _count(sigma, total, rank, energy)
    share = float(sigma[:kept].double().square().sum()) / total if total else 1.0
    if isinstance(delta, LowRank):
        share *= delta.energy or 1.0  # of what was there before it was first compressed
    root = sigma[:kept].sqrt()
    b, a = u[:, :kept] * root, root[:, None] * v[:kept]
    return LowRank(a.contiguous(), b.contiguous(), transposed, energy=min(1.0, share))


def _decompose(
    delta: Delta, rank: int | None, transposed: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """U, sigma and V^T of the [out, in] matrix, at least `rank` of each, and its squared norm."""
    if isinstance(delta, LowRank):
        # The SVD of B A from those of its factors: r x r instead of out x in.
        q_b, r_b = torch.linalg.qr(delta.b.float())
        q_a, r_a = torch.linalg.qr(delta.a.float().T)
        u, sigma, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
        return q_b @ u, sigma, v @ q_a.T, float(sigma.double().square().sum())
    matrix = delta.dense().T if transposed else delta.dense()
    u, sigma, v = _svd(matrix, rank)
    return u, sigma, v, float(matrix.double().square().sum())


def _svd(matrix: torch.Tensor, rank: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U [out, k], sigma [k] falling, V^T [k, in]; randomised where few of many are wanted."""
    smaller = min(matrix.shape)
    if rank is None or 4 * rank > smaller:
        return tuple(torch.linalg.svd(matrix, full_matrices=False))
    # Halko, Martinsson, Tropp 2011; fixed seed, so that the same vector compresses the same.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, sigma, v = torch.svd_lowrank(matrix, q=min(smaller, 2 * rank + 8), niter=3)
    return u, sigma, v.T


def _count(sigma: torch.Tensor, total: float, rank: int | None, energy: float | None) -> int:
    count = len(sigma) if rank is None else min(rank, len(sigma))
    if energy is not None and total:
        kept = sigma.double().square().cumsum(0) / total
        count = min(count, int((kept < energy - 1e-9).sum()) + 1)
    return max(1, count)
