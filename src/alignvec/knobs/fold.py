"""Fold: theta + sum_k lambda_k tau_k into the live weights, and back without a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from alignvec.knobs.setting import Setting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from alignvec.vector import AlignmentVector


class Fold:
    """Vectors folded into a model in place.

    Every turn starts from a copy of the base weights that the vectors change, so settings never
    accumulate: after a thousand turns, zero is the base bit for bit.
    """

    def __init__(self, model: PreTrainedModel, vectors: Mapping[str, AlignmentVector]) -> None:
        self.vectors = dict(vectors)
        parameters = dict(model.named_parameters())
        names = {name for vector in self.vectors.values() for name in vector.deltas}
        self._live: dict[str, torch.Tensor] = {
            name: parameters[name].data for name in sorted(names)
        }
        self._base = {name: weight.clone() for name, weight in self._live.items()}

    def set(self, setting: Setting) -> None:
        """Turn every knob to the strength of a checked setting.

        Sums in float32, rounds once to the dtype of the weights.
        """
        for name, weight in self._live.items():
            weight.copy_(self._folded(name, setting))

    def _folded(self, name: str, setting: Setting) -> torch.Tensor:
        turned = [
            (vector.deltas[name], setting[knob])
            for knob, vector in self.vectors.items()
            if setting[knob] and name in vector.deltas
        ]
        if not turned:
            return self._base[name]
        import torch

        total = self._base[name].to(torch.float32, copy=True)
        for delta, strength in turned:
            delta.in_memory().add_to(total, strength)
        return total
