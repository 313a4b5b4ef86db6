"""Vectors by the tensors of a loaded model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from alignvec.base.architecture import Architecture
from alignvec.errors import AlignvecError
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import Delta, Dense


def on_model(
    vectors: Mapping[str, AlignmentVector], model: PreTrainedModel
) -> dict[str, AlignmentVector]:
    """The same knobs, with a delta for each tensor of the loaded model that they change.

    Parts of tensors that transformers packs together (the experts of Mixtral) become dense.

    Raises:
        AlignvecError: a vector changes what the model does not have.
    """
    known = Architecture(model)
    return {knob: _packed(vector, known) for knob, vector in vectors.items()}


def _packed(vector: AlignmentVector, known: Architecture) -> AlignmentVector:
    whole = {name: delta for name, delta in vector.deltas.items() if name in known.live}
    parts = {name: delta for name, delta in vector.deltas.items() if name not in whole}
    if not parts:
        return vector
    for name in parts:
        if name not in known.shapes:
            raise AlignvecError(f"'{vector.name}' changes {name}, which this model does not have")
    values = known.packed({name: delta.dense() for name, delta in parts.items()})
    residuals = known.packed({name: _residual(delta) for name, delta in parts.items()})
    packed: dict[str, Delta] = {
        name: Dense(value, residuals[name].to_sparse() if residuals[name].any() else None)
        for name, value in values.items()
    }
    return dataclasses.replace(vector, deltas=whole | packed)


def _residual(delta: Delta) -> torch.Tensor:
    if isinstance(delta, Dense) and delta.residual is not None:
        return delta.residual.to_dense()
    return torch.zeros(delta.shape)
