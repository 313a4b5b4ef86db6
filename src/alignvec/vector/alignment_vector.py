"""AlignmentVector: tau = theta' - theta, with the arithmetic of a vector."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alignvec.base.weights import Weights
from alignvec.errors import AlignvecError
from alignvec.vector.delta import Delta
from alignvec.vector.extract import extract
from alignvec.vector.hub import push
from alignvec.vector.model_delta import ModelDelta
from alignvec.vector.store import load, save


@dataclass(frozen=True)
class AlignmentVector(ModelDelta):
    """The weights of an aligned model minus those of its base (the paper's tau, section 3).

    Vectors of one base form a vector space: `0.7 * medical - 0.3 * legal`. What comes from a folder
    stays there until it is used, sums and multiples too, so a vector may be larger than memory:
    `save_pretrained` streams it through. `in_memory` cuts the tie to the folder.

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
            aligned: the same, or the folder of a LoRA adapter trained on the base; an adapter gives
                a `low_rank` vector, anything else a `full` one.
            allow_missing: patterns (as of a shell) of tensors that may be on one side only; they
                are left out.

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
        if not isinstance(scale, int | float):
            return NotImplemented
        if not math.isfinite(scale):
            raise AlignvecError(f"a vector cannot be scaled by {scale}")
        deltas = {name: delta * scale for name, delta in self.deltas.items()} if scale else {}
        return self._derived(deltas, f"{scale:g} {self.name}")

    __rmul__ = __mul__

    def __neg__(self) -> AlignmentVector:
        return self * -1.0

    def __add__(self, other: AlignmentVector) -> AlignmentVector:
        if not isinstance(other, AlignmentVector):
            return NotImplemented
        self._same_base(other)
        deltas = dict(self.deltas)
        for name, delta in other.deltas.items():
            deltas[name] = deltas[name] + delta if name in deltas else delta
        return self._derived(deltas, f"{self.name} + {other.name}")

    def __sub__(self, other: AlignmentVector) -> AlignmentVector:
        return self + -other

    def __repr__(self) -> str:
        return (
            f"AlignmentVector({self.name!r}, {self.kind}, {len(self.deltas)} tensors, "
            f"base={self.base.id!r})"
        )

    def _derived(self, deltas: Mapping[str, Delta], formula: str) -> AlignmentVector:
        return dataclasses.replace(
            self, deltas=deltas, name=formula, training={"formula": formula}, calibration=None
        )

    def _same_base(self, other: AlignmentVector) -> None:
        if self.base.fingerprint != other.base.fingerprint:
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

    def check_base(self, weights: Weights, what: str, fingerprints: bool = True) -> None:
        """Refuse a base that is not the vector's own.

        Args:
            weights: of the base at hand.
            what: its name, for the message.
            fingerprints: false lets a vector onto another stage of fine-tuning of its base; names
                and shapes have to fit all the same.

        Raises:
            AlignvecError: a tensor is missing or of another shape, or the fingerprints differ.
        """
        for name, delta in self.deltas.items():
            if name not in weights:
                raise AlignvecError(f"'{self.name}' changes {name}, which {what} does not have")
            if weights.shape(name) != tuple(delta.shape):
                raise AlignvecError(
                    f"'{self.name}' changes {name} of shape {tuple(delta.shape)}; in {what} it is "
                    f"{weights.shape(name)}"
                )
        if fingerprints and weights.fingerprint != self.base.fingerprint:
            raise AlignvecError(
                f"'{self.name}' belongs to another base ({self.base.id}), not to {what}: the "
                "fingerprints differ; to use it there all the same pass --any-base "
                "(check_base=False)"
            )
