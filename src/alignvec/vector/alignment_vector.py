"""AlignmentVector: tau = theta' - theta, with the arithmetic of a vector."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
import torch

from alignvec.base.identity import BaseId
from alignvec.base.seen import seen_by_all
from alignvec.base.weights import Weights
from alignvec.errors import AlignvecError
from alignvec.vector.delta import Delta
from alignvec.vector.extract import extract
from alignvec.vector.hub import push
from alignvec.vector.model_delta import ModelDelta
from alignvec.vector.store import load, save


@dataclass(frozen=True, eq=False)
class AlignmentVector(ModelDelta):
    """The weights of an aligned model minus those of its base (the paper's tau, section 3).

    Vectors of one base form a vector space: `0.7 * medical - 0.3 * legal`, `sum(vectors) / 3`. What
    comes from a folder stays there until it is used, sums and multiples too, so a vector may be
    larger than memory: `save_pretrained` streams it through. `in_memory` cuts the tie.

    Two are equal (`==`) if they change the same base by the same values, which are read for that.
    It has the attributes of a `ModelDelta`.
    """

    @classmethod
    def extract(
        cls,
        base: str | Path | torch.nn.Module,
        aligned: str | Path | torch.nn.Module,
        name: str | None = None,
        allow_missing: Sequence[str] = (),
    ) -> AlignmentVector:
        """theta' - theta, in float32; of two folders only when it is used.

        Args:
            base: folder, hub id, "embedded", GGUF file or loaded model.
            aligned: the same, or a LoRA adapter trained on the base, a folder or hub id; an adapter
                gives a `low_rank` vector, anything else a `full` one.
            allow_missing: patterns (as of a shell) of tensors that may be on one side only, or of
                another shape there; they are left out.

        Raises:
            AlignvecError: one of them cannot be read, they differ in architecture or vocabulary
                (by tensor name, with both shapes), or a weight is not finite.
        """
        return cls(**vars(extract(base, aligned, name, allow_missing)))

    @classmethod
    def from_pretrained(cls, source: str | Path) -> AlignmentVector:
        """Load from a folder or a hub id.

        Raises:
            AlignvecError: it is missing, damaged, of a newer format, or not finite.
        """
        return cls(**vars(load(source)))

    def save_pretrained(
        self,
        folder: str | Path,
        dtype: str | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write a folder that `from_pretrained` reads; a `low_rank` one is also a PEFT adapter.

        A few tens of megabytes are held at a time. A process that is killed and started again with
        the same vector and folder goes on where it was.

        Args:
            dtype: float32, bfloat16, float16, or int8 (matrices in 8 bits with a scale a row;
                factors in bfloat16, norms and biases in float32); by default as it is.

        Raises:
            AlignvecError: the folder exists (without `overwrite`) or cannot be written.
        """
        return save(self, Path(folder), dtype, overwrite)

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Upload to the Hugging Face hub under `repo_id`; returns the address."""
        return push(self, repo_id, private)

    def norm(self) -> float:
        """The Euclidean norm over all weights."""
        return math.sqrt(max(0.0, self.dot(self)))

    def dot(self, other: AlignmentVector) -> float:
        """The inner product over all weights."""
        self._same_base(other)
        shared = self.deltas.keys() & other.deltas.keys()
        total = sum(self.deltas[name].dot(other.deltas[name]) for name in sorted(shared))
        if not math.isfinite(total):
            raise AlignvecError(f"'{self.name}' or '{other.name}' holds NaN or infinity")
        return total

    def cosine(self, other: AlignmentVector) -> float:
        """The cosine of the angle between two vectors, in [-1, 1]; NaN if one is empty."""
        length = self.norm() * other.norm()
        return self.dot(other) / length if length else math.nan

    def __mul__(self, scale: float) -> AlignmentVector:
        by = _number(scale)
        if by is None:
            return NotImplemented
        if not math.isfinite(by):
            raise AlignvecError(f"a vector cannot be scaled by {by}")
        deltas = {name: delta * by for name, delta in self.deltas.items()} if by else {}
        return self._derived(deltas, f"{by:g} {self.name}")

    __rmul__ = __mul__

    def __truediv__(self, by: float) -> AlignmentVector:
        divisor = _number(by)
        if divisor is None:
            return NotImplemented
        if not divisor or not math.isfinite(divisor) or not math.isfinite(1 / divisor):
            raise AlignvecError(f"a vector cannot be divided by {divisor:g}")
        return self * (1 / divisor)

    def __neg__(self) -> AlignmentVector:
        return self * -1.0

    def __pos__(self) -> AlignmentVector:
        return self

    def __add__(self, other: AlignmentVector | float) -> AlignmentVector:
        """The sum; with the number 0, with which `sum(vectors)` begins, the vector itself."""
        if not isinstance(other, AlignmentVector):
            return self if _number(other) == 0 else NotImplemented
        self._same_base(other)
        deltas = dict(self.deltas)
        for name, delta in other.deltas.items():
            deltas[name] = deltas[name] + delta if name in deltas else delta
        return self._derived(deltas, f"{self.name} + {other.name}", other)

    def __radd__(self, other: float) -> AlignmentVector:
        return self + other

    def __sub__(self, other: AlignmentVector | float) -> AlignmentVector:
        return self + -other

    def __rsub__(self, other: float) -> AlignmentVector:
        return -self + other

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, AlignmentVector):
            return self is other or NotImplemented
        alike = hash(self) == hash(other) and self.base.same_as(other.base)
        return alike and self.fingerprint() == other.fingerprint()

    def __hash__(self) -> int:
        """Of the base and the names, for which nothing is read."""
        return hash((self.base.fingerprint, frozenset(self.deltas)))

    def __repr__(self) -> str:
        return (
            f"AlignmentVector({self.name!r}, {self.kind}, {len(self.deltas)} tensors, "
            f"base={self.base.id!r})"
        )

    def _derived(
        self, deltas: Mapping[str, Delta], formula: str, *others: AlignmentVector
    ) -> AlignmentVector:
        vectors = (self, *others)
        return dataclasses.replace(
            self,
            deltas=deltas,
            name=formula,
            training={"formula": formula} | seen_by_all(v.training for v in vectors),
            calibration=None,
            transposed=frozenset().union(*(v.transposed for v in vectors)) & deltas.keys(),
        )

    def _same_base(self, other: AlignmentVector) -> None:
        if not self.base.same_as(other.base):
            raise AlignvecError(
                f"'{self.name}' and '{other.name}' are vectors of different bases "
                f"({self.base.id} and {other.base.id})"
            )
        for name in self.deltas.keys() & other.deltas.keys():
            shapes = [tuple(vector.deltas[name].shape) for vector in (self, other)]
            if shapes[0] != shapes[1]:
                raise AlignvecError(
                    f"{name} is of shape {shapes[0]} in '{self.name}' and {shapes[1]} in "
                    f"'{other.name}'"
                )

    def on(self, base: BaseId) -> AlignmentVector:
        """The vector as it is on a base: on any but its own nothing that was measured holds."""
        return self if self.base.same_as(base) else dataclasses.replace(self, calibration=None)

    def fitted(self, weights: Weights, what: str, fingerprints: bool = True) -> AlignmentVector:
        """The vector by the names of `weights`; a base that is not its own is refused.

        Args:
            weights: of the base at hand.
            what: its name, for the message.
            fingerprints: false lets a vector onto another stage of fine-tuning of its base; names
                and shapes have to fit all the same.

        Raises:
            AlignvecError: a tensor is missing or of another shape, or the fingerprints differ.
        """
        names = weights.names(self.deltas)
        for name, delta in self.deltas.items():
            known = names.get(name, name)
            if known not in weights and known not in weights.tied:
                raise AlignvecError(f"'{self.name}' changes {name}, which {what} does not have")
            if weights.shape(known) != tuple(delta.shape):
                raise AlignvecError(
                    f"'{self.name}' changes {name} of shape {tuple(delta.shape)}; in {what} it is "
                    f"{weights.shape(known)}"
                )
        if fingerprints and not self.base.is_of(weights):
            raise AlignvecError(
                f"'{self.name}' belongs to another base ({self.base.id}), not to {what}: the "
                "fingerprints differ; to use it there all the same pass --any-base "
                "(check_base=False)"
            )
        if all(names.get(name, name) == name for name in self.deltas):
            return self
        deltas = {names.get(name, name): delta for name, delta in self.deltas.items()}
        return dataclasses.replace(self, deltas=deltas)


def as_vector(vector: AlignmentVector | str | Path) -> AlignmentVector:
    """A vector, or the one that is stored there."""
    if isinstance(vector, AlignmentVector):
        return vector
    return AlignmentVector.from_pretrained(vector)


def _number(value: object) -> float | None:
    """A real number, of numpy and torch, too, as a float; None of anything else."""
    if isinstance(value, torch.Tensor | np.generic | np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
