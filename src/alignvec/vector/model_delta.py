"""What lies between two models: a delta for each weight that differs, and where it comes from.

What reading, extracting and writing hand to each other; `AlignmentVector` adds the algebra.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from alignvec.base.identity import BaseId
from alignvec.base.weights import all_finite
from alignvec.errors import AlignvecError
from alignvec.vector.delta import Delta, Dense, LowRank
from alignvec.vector.identity import content_hash, origin_hash


@dataclass(frozen=True)
class ModelDelta:
    """theta' - theta of two models.

    Attributes:
        deltas: weight name -> its change; weights that do not change are absent.
        base: the base it is defined against.
        name: for people.
        training: where it comes from: the training record of `align`, or a formula.
        calibration: level -> strength and a safe range, once known.
        transposed: weights that the base stores as [in, out] (Conv1D), which adapters turn round.
    """

    deltas: Mapping[str, Delta]
    base: BaseId
    name: str = "alignment vector"
    training: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    transposed: frozenset[str] = frozenset()

    @property
    def kind(self) -> str:
        """`low_rank` if any delta is factored, else `full`."""
        factored = any(isinstance(delta, LowRank) for delta in self.deltas.values())
        return "low_rank" if factored else "full"

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype among its tensors; float32 of an empty vector.

        int8 if its dense matrices all are, since factors, norms and biases never are.
        """
        matrices = {
            delta.dtype
            for delta in self.deltas.values()
            if len(delta.shape) > 1 and not isinstance(delta, LowRank)
        }
        if matrices == {torch.int8}:
            return torch.int8
        dtypes = {delta.dtype for delta in self.deltas.values()}
        return max(dtypes, key=lambda dtype: dtype.itemsize, default=torch.float32)

    def in_memory(self) -> Self:
        """The same vector with everything read, independent of the folder it came from.

        Raises:
            AlignvecError: a delta holds NaN or infinity, or its file changed meanwhile.
        """
        read = {name: delta.in_memory() for name, delta in self.deltas.items()}
        for name, delta in read.items():
            if isinstance(delta, Dense) and not all_finite(delta.values):
                raise AlignvecError(f"'{self.name}': {name} holds NaN or infinity")
        return dataclasses.replace(self, deltas=read)

    def fingerprint(self) -> str:
        """A hash of every value, for caches and provenance. Of one on disk it reads all of it."""
        return content_hash(self.deltas)

    def origin(self) -> str:
        """A hash of what it is made from; of files that is their state, and nothing is read."""
        return origin_hash(self.deltas)
