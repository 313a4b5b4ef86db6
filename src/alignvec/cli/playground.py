"""`alignvec playground`: the page of a server that runs elsewhere."""

from __future__ import annotations

import os
from contextlib import suppress
from threading import Event
from typing import Annotated

import typer

from alignvec.errors import AlignvecError

app = typer.Typer()


@app.command(
    epilog="Example: alignvec playground --url http://127.0.0.1:8000\n\n"
    "Example: alignvec playground --url https://models.example.org --api-key-env MODELS_KEY"
)
def playground(
    url: Annotated[
        str, typer.Option(metavar="URL", help="Of `alignvec serve`, or another with its API.")
    ] = "http://127.0.0.1:8000",
    host: Annotated[str, typer.Option(help="0.0.0.0 for the whole network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            "--api-key-env",
            metavar="NAME",
            help="The environment variable that holds the server's API key. Whoever opens the page "
            "then uses it; without, the page asks for theirs.",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve others: the page asks nobody who they are.")
    ] = False,
) -> None:
    """A web page with a slider for each knob of a server: two columns, a sweep, profiles."""
    key = None
    if api_key_env is not None:
        key = os.environ.get(api_key_env)
        if not key:
            raise AlignvecError(f"the environment has no {api_key_env!r}; set it to the API key")
    _serve(url, host, port, key, insecure)


def _serve(url: str, host: str, port: int, key: str | None, insecure: bool) -> None:
    try:
        from alignvec.serve.address import address_of, is_local
        from alignvec.serve.playground.site import serving
    except ImportError as error:
        raise AlignvecError(
            "the playground needs Gradio 6: pip install 'alignvec[serve,ui]'"
        ) from error
    # A server that asks this machine for no key, and the key of --api-key-env, is everybody's then.
    if not (insecure or is_local(address_of(host, port)[1][0])):
        raise AlignvecError(
            f"--host {host} lets others in, and the page asks nobody who they are; --insecure "
            "serves everybody"
        )
    with serving(url, host, port, key) as address, suppress(KeyboardInterrupt):
        typer.echo(f"the playground of {url} is at {address} (Ctrl+C stops)")
        Event().wait()
