"""Vectors as knobs on a live model."""

import importlib
from typing import Any

__all__ = ["KnobModel", "Setting", "parse_setting"]
_MODULES = {"KnobModel": "model", "Setting": "setting", "parse_setting": "setting"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a setting is read without a model's libraries."""
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
