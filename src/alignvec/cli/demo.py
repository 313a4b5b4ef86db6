"""`alignvec demo`: the whole way on a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command(epilog="Example: alignvec demo --out alignvec-demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that it makes.")] = Path(
        "alignvec-demo"
    ),
    domain: Annotated[str, typer.Option(help="medical, financial or legal.")] = "medical",
) -> None:
    """The whole way on a real model: train a vector, turn it, watch the answers change.

    Runs on the embedded 135M model, a few minutes on 2 cores; a second run takes what the first
    one trained and measured.
    """
    from alignvec.cli.walkthrough import run

    run(out, domain)
