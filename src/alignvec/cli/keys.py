"""Who may talk to a server: `alignvec keys`."""

from __future__ import annotations

from typing import Annotated

import typer

from alignvec.cli.options import STATE, AsJson, StateFile
from alignvec.cli.output import print_json

app = typer.Typer()
keys = typer.Typer(
    name="keys",
    help="API keys of `alignvec serve`: add, list, revoke, also while it runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(keys)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")]


@keys.command(epilog="Example: alignvec keys add ci")
def add(name: Name, state: StateFile = STATE, as_json: AsJson = False) -> None:
    """Make a key and print it, this once: what is kept is its hash."""
    from alignvec.serve.keys import Keys

    key = Keys(state).add(name)
    if as_json:
        print_json({"name": name, "key": key})
    else:
        typer.echo(key)


@keys.command("list", epilog="Example: alignvec keys list --state alignvec-serve.sqlite")
def list_keys(state: StateFile = STATE, as_json: AsJson = False) -> None:
    """The names of the keys, and when each was added."""
    from alignvec.serve.keys import Keys

    stored = Keys(state, make=False).stored()
    if as_json:
        print_json([vars(key) for key in stored])
        return
    for key in stored:
        typer.echo(f"{key.name}  {key.added}")


@keys.command(epilog="Example: alignvec keys revoke ci")
def revoke(name: Name, state: StateFile = STATE) -> None:
    """Take a key back; a server that runs refuses it within a second."""
    from alignvec.serve.keys import Keys

    Keys(state, make=False).revoke(name)
    typer.echo(f"revoked: {name}")
