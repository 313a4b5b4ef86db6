"""The weights of a loaded model, and of a base in any of its forms."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from alignvec.base.model_weights import ModelWeights
from alignvec.base.source import find_base
from alignvec.base.weights import Weights
from alignvec.base.wrappers import plain_model, unwrapped


class LiveWeights(Weights):
    """The parameters of a loaded model and the buffers that it saves; a tied tensor once.

    Raises:
        AlignvecError: see `plain_model`.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        # Whoever has a loaded model has transformers loaded; others need not wait for it.
        from transformers import PreTrainedModel

        from alignvec.base.architecture import Architecture

        model = plain_model(model)
        parts: dict[str, torch.Tensor] = {
            unwrapped(name): parameter for name, parameter in model.named_parameters()
        }
        if isinstance(model, PreTrainedModel):
            self.architecture = Architecture(model)
            parts = self.architecture.unpacked(self.architecture.live)
            self.tied, self.transposed = self.architecture.tied, self.architecture.transposed
        super().__init__({n: part.detach() for n, part in parts.items() if n not in self.tied})

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        tensor: torch.Tensor = self._entries[self.tied.get(name, name)]
        return (tensor if tensor.ndim else tensor.reshape(1))[start:stop]

    def sample(self, name: str, count: int) -> torch.Tensor:
        flat: torch.Tensor = self._entries[name].reshape(-1)
        return flat[:: max(1, flat.numel() // max(1, count))][:count]

    def names(self, others: Iterable[str]) -> dict[str, str]:
        return (
            super().names(others) if self.architecture is None else self.architecture.names(others)
        )


def open_weights(source: str | Path | torch.nn.Module) -> Weights:
    """Weights of a base in any of its forms, or of a loaded model. A tied tensor appears once.

    They go by the names of the loaded model, whatever a file calls them.
    """
    if isinstance(source, str | Path):
        return ModelWeights(find_base(str(source)))
    return LiveWeights(source)
