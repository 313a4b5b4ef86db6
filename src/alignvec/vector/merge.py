"""Merge methods: how several weighted deltas of one weight make one change; mergekit's names.

    task_arithmetic  sum_k lambda_k tau_k, the paper's (Ilharco et al. 2023, arXiv:2212.04089)
    ties             trim each tau_k to its largest entries, elect a sign for every weight, and sum
                     what agrees with it (Yadav et al. 2023, arXiv:2306.01708)
    dare_linear      drop entries of tau_k at random, scale the others up, and sum
                     (Yu et al. 2023, arXiv:2311.03099)
    dare_ties        drop as DARE does, then elect and sum as TIES does

What agrees is summed, not averaged (mergekit's `normalize: false`): a strength stays a strength,
and a vector that is alone and whole gives what `task_arithmetic` gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from threading import Lock

import numpy as np
import torch

from alignvec.errors import AlignvecError, check_known
from alignvec.vector.delta import Delta, Dense, Lazy, Weighted, parts

METHODS = ("task_arithmetic", "ties", "dare_linear", "dare_ties")
_ALIASES = {"sum": "task_arithmetic", "dare": "dare_linear"}  # names of this project, before


@dataclass(frozen=True)
class Merge:
    """How the deltas of one weight are merged.

    Attributes:
        method: one of `METHODS`; `sum` and `dare` stand for task_arithmetic and dare_linear.
        density: the share of each delta's entries that ties and dare keep, above 0 and at most 1.
        seed: of what dare drops.

    Raises:
        AlignvecError: an unknown method, a density out of range or a negative seed.
    """

    method: str = "task_arithmetic"
    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", _ALIASES.get(self.method, self.method))
        check_known("merge method", self.method, METHODS)
        if not 0 < self.density <= 1:
            raise AlignvecError(f"density is a share, above 0 and at most 1, not {self.density}")
        if self.seed < 0:
            raise AlignvecError(f"seed must be at least 0, not {self.seed}")

    def __call__(self, name: str, weighted: Weighted) -> Weighted:
        """Deltas with strengths whose plain sum is the merge of `weighted`, part by part.

        Args:
            name: of the weight.
            weighted: its deltas, all of one shape, with their strengths.
        """
        if self.method == "task_arithmetic":
            return weighted
        if self.density < 1 and self.method == "ties":
            weighted = [(trimmed(delta, self.density), by) for delta, by in weighted]
        elif self.density < 1:
            weighted = [
                (dropped(delta, self.density, f"{self.seed} {index} {name}"), by)
                for index, (delta, by) in enumerate(weighted)
            ]
        elects = self.method != "dare_linear"
        return [(elected(weighted), 1.0)] if weighted and elects else weighted


TASK_ARITHMETIC = Merge()


# Below, entries are left out by a product with 0, not by a choice: NaN stays NaN and is noticed.


def trimmed(delta: Delta, density: float) -> Lazy:
    """The `density` largest entries by magnitude; the least of them is sought once, when asked."""
    lock, least = Lock(), list[float]()

    def read(start: int, stop: int) -> Dense:
        with lock:
            if not least:
                least.append(_trim_threshold(delta, density))
        values = _dense(delta, start, stop)
        return Dense(values * (values.abs() >= least[0]))

    return Lazy(tuple(delta.shape), torch.float32, read)


def dropped(delta: Delta, density: float, seed: str) -> Lazy:
    """Each entry with probability `density`, over `density`; otherwise 0.

    Entry i takes number i of a stream that `seed` names, however the delta is cut into parts.
    """
    width = prod(delta.shape[1:])

    def read(start: int, stop: int) -> Dense:
        values = _dense(delta, start, stop)
        numbers = np.random.PCG64([*seed.encode()]).advance(start * width)
        kept = np.random.Generator(numbers).random(values.shape) < density
        return Dense(values * torch.from_numpy(kept) / density)

    return Lazy(tuple(delta.shape), torch.float32, read)


def elected(weighted: Weighted) -> Lazy:
    """All that raises a weight or all that lowers it, whichever weighs more; a draw gives 0."""

    def read(start: int, stop: int) -> Dense:
        up = down = torch.zeros(())
        for delta, by in weighted:
            change = by * _dense(delta, start, stop)
            up, down = up + change.clamp(min=0), down + change.clamp(max=0)
        return Dense(up * (up > -down) + down * (up < -down))

    return Lazy(tuple(weighted[0][0].shape), torch.float32, read)


def _dense(delta: Delta, start: int, stop: int) -> torch.Tensor:
    """Rows of a delta in float32, [stop - start, ...]."""
    return delta.part(start, stop).dense().reshape(stop - start, *delta.shape[1:])


def _trim_threshold(delta: Delta, density: float) -> float:
    """The magnitude from which on entries are kept, rounded down to a bfloat16.

    A histogram instead of a sort, so that one pass in parts will do: the upper half of a float32's
    bits is a bfloat16, and without the sign they are ordered as the magnitudes are.
    """
    counts = torch.zeros(2**15, dtype=torch.int64)
    for start, stop in parts(delta.shape):
        bits = _dense(delta, start, stop).abs().reshape(-1).view(torch.int32) >> 16
        counts += torch.bincount(bits, minlength=2**15)
    from_above = counts.flip(0).cumsum(0)
    wanted = max(1, int(density * delta.shape.numel()))
    least = 2**15 - 1 - int((from_above < wanted).sum())
    return float(torch.tensor(least << 16, dtype=torch.int32).view(torch.float32))
