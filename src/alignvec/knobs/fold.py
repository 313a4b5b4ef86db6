"""Fold: theta + sum_k lambda_k tau_k into the live weights, and back without a trace."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from alignvec.base.weights import row_count
from alignvec.knobs.setting import Setting
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import folded
from alignvec.vector.fold import deltas_of


class Fold:
    """Vectors folded into a model in place.

    Every turn starts from a copy of the base weights that the vectors change, so settings never
    accumulate: after a thousand turns, zero is the base bit for bit.
    """

    def __init__(self, model: PreTrainedModel, vectors: Mapping[str, AlignmentVector]) -> None:
        self.vectors = dict(vectors)
        parameters = dict(model.named_parameters())
        names = {name for vector in self.vectors.values() for name in vector.deltas}
        self._live = {name: parameters[name].data for name in sorted(names)}
        self._base = {name: weight.clone() for name, weight in self._live.items()}

    def set(self, setting: Setting) -> None:
        """Turn every knob to the strength of a checked setting.

        Sums in float32, rounds once to the dtype of the weights.
        """
        weighted = [(vector, setting[knob]) for knob, vector in self.vectors.items()]
        for name, weight in self._live.items():
            base = self._base[name]
            if deltas := deltas_of(name, weighted):
                copy = base.to(torch.float32, copy=True)
                weight.copy_(folded(copy, deltas, 0, row_count(base.shape)))
            else:
                weight.copy_(base)
