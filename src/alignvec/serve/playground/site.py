"""The page on the web: by itself, or at `/` of the server that it is a client of."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette._utils import get_route_path
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from alignvec.errors import AlignvecError
from alignvec.serve.playground.client import Client
from alignvec.serve.playground.page import build

# All of Gradio that the page uses. What is not here, above all what reads or takes files or
# fetches addresses (/gradio_api/file=, /upload, /proxy=, ...), is not there.
_USED = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|svelte)/.*"
    r"|/gradio_api/(queue/(join|data)|heartbeat/\w+|cancel|reset|startup-events)"
)


# Contrasts of 4.5 to 1 and more, light and dark, where Gradio's own are below.
_READABLE = {
    "body_text_color_subdued": "*neutral_500",
    "body_text_color_subdued_dark": "*neutral_400",
    "block_info_text_color": "*neutral_500",
    "block_info_text_color_dark": "*neutral_400",
    "block_label_text_color": "*neutral_600",
    "block_label_text_color_dark": "*neutral_300",
    "block_title_text_color": "*neutral_600",
    "block_title_text_color_dark": "*neutral_300",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "*neutral_400",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_hover_dark": "*primary_600",
    "button_primary_text_color": "white",
    "button_primary_text_color_dark": "white",
    "color_accent": "*primary_700",
    "slider_color": "*primary_700",
    "slider_color_dark": "*primary_500",
    "checkbox_background_color_selected": "*primary_700",
    "checkbox_background_color_selected_dark": "*primary_600",
}


class _OnlyUsed:
    """Gradio without the routes that the page does not use."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _USED.fullmatch(get_route_path(scope)):
            await PlainTextResponse("not found", 404)(scope, receive, send)
        elif scope["type"] != "websocket":
            await self._app(scope, receive, send)


def _options() -> dict[str, Any]:
    """Nothing leaves the machine: no fonts, scripts or numbers from or to elsewhere."""
    here = Path(__file__).parent
    return {
        "app_kwargs": {"middleware": [Middleware(_OnlyUsed)]},
        "allowed_paths": [],
        "ssr_mode": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "run_history": False,  # several people may sit at one browser
        "footer_links": [],
        "pwa": False,
        "show_error": False,
        "max_file_size": 1,
        "theme": gr.themes.Base(
            primary_hue="teal",
            neutral_hue="stone",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ).set(**_READABLE),
        "css": (here / "page.css").read_text("utf-8"),
    }


def mount(app: FastAPI, url: str, key: str | None = None) -> None:
    """Put the page at `/` of an application, below whatever is there already.

    Args:
        url: where that application is reached from its own machine.
        key: for those who give none.
    """
    gr.mount_gradio_app(app, build(Client(url, key)), path="/", **_options())


@contextmanager
def serving(url: str, host: str, port: int, key: str | None = None) -> Iterator[str]:
    """Serve the page as long as this is entered; yields its address.

    Args:
        url: of the server, which may be started later.
        key: for those who give none.

    Raises:
        AlignvecError: the URL is none, the port is taken, or the host is not this machine's.
    """
    page = build(Client(url, key))
    _check_free(host, port)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=False,
        **_options(),
    )
    try:
        yield address
    finally:
        page.close(verbose=False)


def _check_free(host: str, port: int) -> None:
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise AlignvecError(
            f"cannot serve on {host}, port {port}: {error.strerror}; choose others with --host "
            "and --port"
        ) from error
