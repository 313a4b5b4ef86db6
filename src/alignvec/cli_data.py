"""`alignvec data ...`: from personas to clean, annotated preference records."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="data",
    help="Make preference data: personas, queries, responses; clean and check it.",
    epilog="The way: personas, queries, responses, clean, annotate, agreement, stats.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
