"""Which base a vector is defined against: a name for people, a fingerprint for the check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from alignvec.base.live import open_weights
from alignvec.base.source import base_name


@dataclass(frozen=True)
class BaseId:
    """A base by name and by the fingerprint of its weights (`Weights.fingerprint`)."""

    id: str
    fingerprint: str


def base_id(source: str | Path | torch.nn.Module) -> BaseId:
    """Name and fingerprint of a base; of a path, and of a loaded model, the last part is enough."""
    if isinstance(source, str | Path):
        name = base_name(str(source))
    else:
        name = str(getattr(source.config, "_name_or_path", ""))
    short = Path(name).name if name.startswith("/") else name
    return BaseId(short, open_weights(source).fingerprint)
