"""How commands print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table


def print_table(table: Table) -> None:
    from rich.console import Console

    Console().print(table)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def written(setting: Mapping[str, float]) -> str:
    """A setting as people write it."""
    return ",".join(f"{knob}={strength:g}" for knob, strength in setting.items()) or "base"
