"""Which base a vector is defined against: a name for people, a fingerprint for the check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from alignvec.base.live import open_weights
from alignvec.base.source import base_name
from alignvec.base.weights import Weights
from alignvec.base.wrappers import plain_model


@dataclass(frozen=True)
class BaseId:
    """A base by name and by the fingerprint of its weights.

    Attributes:
        fingerprint: see `Weights.fingerprint`.
        detail: see `Weights.detail`; empty where it is not known, as of 0.1.
    """

    id: str
    fingerprint: str
    detail: str = ""

    def same_as(self, other: BaseId) -> bool:
        """Whether they are one base, by all that is known of both."""
        alike = self.detail == other.detail or not (self.detail and other.detail)
        return self.fingerprint == other.fingerprint and alike

    def is_of(self, weights: Weights) -> bool:
        """Whether those are the base's weights, by all that is known of it."""
        known = self.fingerprint in weights.fingerprints
        return known and self.detail in ("", weights.detail)


def base_id(source: str | Path | torch.nn.Module, weights: Weights | None = None) -> BaseId:
    """Name and fingerprint of a base; of a path, and of a loaded model, the last part is enough."""
    if isinstance(source, str | Path):
        name = base_name(str(source))
    else:
        config = getattr(plain_model(source), "config", None)
        name = str(getattr(config, "_name_or_path", ""))
    short = Path(name).name if name.startswith("/") else name
    if weights is None:
        weights = open_weights(source)
    return BaseId(short, weights.fingerprint, weights.detail)
