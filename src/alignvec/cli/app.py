"""The command line: each command parses, calls one capability, and prints what it found."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from typing import Annotated

import typer

from alignvec.cli import (
    align,
    annotation,
    demo,
    evaluate,
    generate,
    keys,
    quality,
    reproduce,
    route,
    search,
    serve,
    synthesis,
    vector,
)
from alignvec.cli.failure import Once, OneLineErrors

app = typer.Typer(
    name="alignvec",
    cls=OneLineErrors,
    help="Turn preferences into knobs on a language model.",
    epilog="Start with: alignvec demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(
    name="data",
    help="Make preference data: personas, queries, responses; clean and check it.",
    epilog="The way: personas, queries, responses, clean, annotate, agreement, stats.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for step in (align, vector, generate, evaluate, search, route, reproduce, serve, keys, demo):
    app.add_typer(step.app)
for step in (synthesis, annotation, quality):
    data.add_typer(step.app)
app.add_typer(data)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on failure.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")] = False,
) -> None:
    """Turn preferences into knobs on a language model."""
    from alignvec.progress import show

    if debug:
        os.environ["ALIGNVEC_DEBUG"] = "1"
    else:
        warnings.simplefilter("ignore")  # libraries' words to developers; ours are logged
    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].addFilter(Once())
    # Of several processes (`accelerate launch`) the first one speaks.
    second = os.environ.get("RANK", "0") != "0"
    level = logging.ERROR if second else logging.WARNING if quiet else logging.INFO
    logging.getLogger("alignvec").setLevel(level)
    show(sys.stderr.isatty() and not quiet and not second)
    if quiet or second:
        os.environ["TQDM_DISABLE"] = "1"  # the bars of other libraries


def main() -> None:
    """Run the command line on this process's arguments."""
    try:
        app()
    finally:
        gc.freeze()  # the interpreter's last collection takes .35 s over torch, for nothing
