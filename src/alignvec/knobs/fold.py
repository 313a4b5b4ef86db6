"""Fold: theta + sum_k lambda_k tau_k into the live weights, and back without a trace."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from alignvec.base.architecture import Architecture
from alignvec.base.weights import row_count
from alignvec.knobs.live import on_model
from alignvec.knobs.setting import Setting
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import folded
from alignvec.vector.fold import WeightedVectors, deltas_of


class Fold:
    """Vectors folded into a model in place.

    Every turn starts from a copy of the base weights that the vectors change, so settings never
    accumulate: after a thousand turns, zero is the base bit for bit. A head that is tied to the
    embedding has a tensor of its own while a vector moves it apart.
    """

    def __init__(self, model: PreTrainedModel, vectors: Mapping[str, AlignmentVector]) -> None:
        self.vectors = on_model(vectors, model)
        self._model = model
        known = Architecture(model)
        self._tied, self._tensors = known.tied, known.live
        names = {name for vector in self.vectors.values() for name in vector.deltas}
        self._apart = sorted(names & self._tied.keys())
        sources = {self._tied[name] for name in self._apart}
        self._live = {
            n: self._tensors[n].data for n in sorted(names | sources) if n not in self._tied
        }
        self._base = {name: weight.clone() for name, weight in self._live.items()}

    def set(self, setting: Setting) -> None:
        """Turn every knob to the strength of a checked setting.

        Sums in float32, rounds once to the dtype of the weights.
        """
        weighted = [(vector, setting[knob]) for knob, vector in self.vectors.items()]
        for name, weight in self._live.items():
            weight.copy_(self._folded(name, self._base[name], weighted))
        for name in self._apart:
            parameter = self._tensors[self._tied[name]]
            if deltas_of(name, weighted, {}):
                own = self._folded(name, self._base[self._tied[name]], weighted)
                parameter = torch.nn.Parameter(own.to(parameter.dtype), requires_grad=False)
            module, _, part = name.rpartition(".")
            setattr(self._model.get_submodule(module), part, parameter)

    def _folded(self, name: str, base: torch.Tensor, weighted: WeightedVectors) -> torch.Tensor:
        deltas = deltas_of(name, weighted, self._tied)
        if not deltas:
            return base
        return folded(base.to(torch.float32, copy=True), deltas, 0, row_count(base.shape))
