"""`alignvec serve`: OpenAI's API with knobs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from alignvec.cli.inputs import knob_model
from alignvec.cli.options import STATE, AnyBase, BaseArgument, Device, Dtype, StateFile, Vectors
from alignvec.cli.vllm import become_vllm, check_options
from alignvec.errors import AlignvecError

if TYPE_CHECKING:
    from fastapi import FastAPI

app = typer.Typer()


@app.command(
    epilog="Example: alignvec serve embedded --vector medical=medical-av\n\n"
    "Example: alignvec serve embedded --vector medical=medical-av --host 0.0.0.0 --port 80 "
    "--state /var/lib/alignvec/serve.sqlite\n\n"
    "Example: alignvec serve base --engine vllm --vector medical=medical-av "
    "-- --tensor-parallel-size 2"
)
def serve(
    context: typer.Context,
    base: BaseArgument,
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- FLAG...]", help="Of vLLM's own, for it alone."),
    ] = None,
    engine: Annotated[
        Literal["transformers", "vllm"],
        typer.Option(help="vllm: in an environment that has it."),
    ] = "transformers",
    vector: Vectors = [],  # noqa: B006
    setting: Annotated[
        str,
        typer.Option(
            "--set",
            metavar="KNOB=STRENGTH,...",
            help="The setting of requests that say nothing of knobs; or @FILE.",
        ),
    ] = "",
    fold: Annotated[
        str,
        typer.Option(
            metavar="KNOB=STRENGTH,...",
            help="With --engine vllm, which turns vectors of low rank alone: these go into the "
            "weights before it starts.",
        ),
    ] = "",
    router: Annotated[
        Path | None,
        typer.Option(
            help="From `alignvec route --reads text`: only the knobs of the question's domain act."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="0.0.0.0 for the whole network; then there has to be a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Of the model, for clients. Default: the base's.")
    ] = None,
    state: StateFile = STATE,
    max_rows: Annotated[
        int, typer.Option(min=1, help="Answers that are written side by side.")
    ] = 32,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Requests that wait; more are refused for now (429).")
    ] = 256,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Of a chat answer, where the request does not say.")
    ] = 512,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 2**20,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds until a request is answered.")
    ] = 600.0,
    drain: Annotated[
        float,
        typer.Option(min=0, help="Seconds that running requests have when the server is stopped."),
    ] = 30.0,
    cors: Annotated[
        list[str],
        typer.Option(
            "--cors", metavar="ORIGIN", help="Web pages that may call it from a browser; repeat."
        ),
    ] = [],  # noqa: B006
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve others without a key.")
    ] = False,
    no_page: Annotated[bool, typer.Option("--no-page", help="No playground at /.")] = False,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Log what is asked, too.")
    ] = False,
    any_base: AnyBase = False,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Serve a model with its knobs to any client of OpenAI's API.

    Clients turn the knobs by the request: a field `knobs`, a field `profile`, or the name of the
    model (`embedded:medical=0.7`). The page at / has a slider for each.
    """
    served = name or _name(base)
    if engine == "vllm":
        check_options(context)
        become_vllm(
            base, served, vector, setting, fold, router, state, host, port, insecure, any_base,
            dtype, flags or [],
        )  # fmt: skip
        return
    if fold:
        raise AlignvecError("--fold goes with --engine vllm; this one turns any vector")
    if flags:
        raise AlignvecError(f"'{flags[0]}' is one too many: flags go with --engine vllm")
    _bound_kernels()
    try:
        from alignvec.serve.address import address_of, bound, is_local, url_of
        from alignvec.serve.app import Door, application
        from alignvec.serve.dial import Dial
        from alignvec.serve.endpoints import Limits
        from alignvec.serve.engine import Engine
        from alignvec.serve.keys import Keys
        from alignvec.serve.process import run
        from alignvec.serve.profiles import Profiles
        from alignvec.serve.security import Access, check_bind
    except ImportError as error:
        raise AlignvecError(
            f"the server needs {error.name}: pip install 'alignvec[serve]'"
        ) from error
    from alignvec.knobs.setting import parse_setting
    from alignvec.route.router import Router

    if math.isnan(timeout) or math.isnan(drain):
        raise AlignvecError("--timeout and --drain are seconds")
    default = parse_setting(setting) if setting else {}
    access = Access(Keys(state))
    address = address_of(host, port)[1][0]
    check_bind(host, address, access, insecure)
    with bound(host, port) as found:  # first: a model takes its time to load
        url = url_of(found)
        here = url.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
        page = None if no_page else _playground(here)

        def prepared() -> tuple[Engine, FastAPI]:
            model, _ = knob_model(
                base, vector, [setting] if setting else [], any_base, dtype, device, "gate"
            )
            profiles = Profiles(state)
            reads = Router.load(router) if router else None
            dial = Dial(served, model.vectors, profiles, default, reads)
            rows = Engine(model, max_rows, max_waiting)
            door = Door(access, is_local(address), host, cors)
            limits = Limits(max_body, timeout, max_tokens)
            return rows, application(rows, dial, profiles, door, limits, log_prompts, page)

        # In a thread that ends: OpenMP keeps helpers for every thread that has computed, and where
        # there are more of them than cores it puts them to sleep between any two products.
        with ThreadPoolExecutor(1) as thread:
            rows, made = thread.submit(prepared).result()
        knobs = ", ".join(rows.model.vectors) or "none"

        def ready() -> None:
            typer.echo(f"{served} at {url}/v1, knobs: {knobs} (Ctrl+C stops)")
            if page:
                typer.echo(f"a page with a slider for each at {here}/")
            elif not no_page:
                typer.echo("no page: it needs Gradio, pip install 'alignvec[ui]'")

        run(made, rows, found, drain, ready)


def _bound_kernels() -> None:
    """Before PyTorch is imported: on a CPU it keeps a thousand kernels for products of bfloat16
    numbers, one a shape, and a server comes by many shapes.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, "128")


def _playground(url: str) -> Callable[[FastAPI], None] | None:
    """What mounts the page of a server at this address; None without Gradio."""
    try:
        from alignvec.serve.playground.site import mount
    except ImportError:
        return None
    return lambda made: mount(made, url)


def _name(base: str) -> str:
    """Of a path its last part; a hub id without its revision."""
    path = Path(base)
    if not path.exists():
        return base.partition("@")[0]
    return path.stem if path.suffix == ".gguf" else path.resolve().name
