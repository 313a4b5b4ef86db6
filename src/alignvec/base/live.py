"""The weights of a loaded model, and of a base in any of its forms."""

from __future__ import annotations

from pathlib import Path

import torch

from alignvec.base.checkpoint import CheckpointWeights
from alignvec.base.source import find_base
from alignvec.base.weights import Weights


class LiveWeights(Weights):
    """The parameters of a loaded model. A tied tensor appears once."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__({name: value.detach() for name, value in model.named_parameters()})

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        tensor: torch.Tensor = self._entries[name]
        return (tensor if tensor.ndim else tensor.reshape(1))[start:stop]

    def sample(self, name: str, count: int) -> torch.Tensor:
        flat: torch.Tensor = self._entries[name].reshape(-1)
        return flat[:: max(1, flat.numel() // count)][:count]


def open_weights(source: str | Path | torch.nn.Module) -> Weights:
    """Weights of a base in any of its forms, or of a loaded model. A tied tensor appears once."""
    if isinstance(source, str | Path):
        return CheckpointWeights(find_base(str(source)))
    return LiveWeights(source)
