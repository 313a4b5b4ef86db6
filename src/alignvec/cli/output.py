"""How commands print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

_PIPED = 160  # columns


def print_table(table: Table) -> None:
    """Names in it are text, whatever is in brackets; what is piped has no edge to be folded at."""
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, _PIPED)
    console.print(table)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def written(setting: Mapping[str, float]) -> str:
    """A setting as people write it."""
    return ",".join(f"{knob}={strength:g}" for knob, strength in setting.items()) or "base"
