"""How many positions a model has."""

from __future__ import annotations

from typing import Any


def positions(config: Any) -> int | None:
    """Of a transformers config; None where it does not say, or says that there is no end."""
    told = getattr(config.get_text_config(), "max_position_embeddings", None)
    return (
        int(told) if told and told > 0 else None
    )  # -1 is the word of some for: as many as you like
