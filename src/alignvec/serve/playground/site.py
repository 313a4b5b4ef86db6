"""The page on the web: by itself, or at `/` of the server that it is a client of."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.routing import Match, Mount
from starlette.types import Receive, Scope, Send

from alignvec.serve.address import address_of, bound, is_local, url_of
from alignvec.serve.body import BodyLimit
from alignvec.serve.errors import Refused, answer, install
from alignvec.serve.gone import Gone, unless
from alignvec.serve.playground.client import Client
from alignvec.serve.playground.page import build
from alignvec.serve.process import Closing
from alignvec.serve.security import Access, Guard

# All of Gradio that the page uses. What is not here, above all what reads or takes files or
# fetches addresses (/gradio_api/file=, /upload, /proxy=, ...), is not there. By app_id an open page
# finds a server that was started anew.
_USED = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|svelte)/.*"
    r"|/gradio_api/(queue/(join|data)|heartbeat/\w+|cancel|reset|startup-events|app_id)"
)
_OPEN = "/gradio_api/heartbeat/"  # a request that lasts as long as a page is open
_END = 2  # seconds that open pages have when the server stops
_MOST, _SLOWEST = 1 << 22, 60.0  # bytes of what a page sends, with its talk; seconds it may take

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


class _OnlyUsed(Mount):
    """Gradio without the routes that the page does not use; the application refuses those."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "http" and _USED.fullmatch(path):
            return super().matches(scope)
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio's answer, as to a request from its own page: it would let any other read it, too,
        wherever the host is not called localhost.
        """
        headers = [(name, value) for name, value in scope["headers"] if name != b"origin"]
        answer = super().handle({**scope, "headers": headers}, receive, send)
        if _OPEN not in scope["path"]:
            await answer
            return
        with suppress(Gone):
            await unless(scope["app"].state.closing.wait(), answer)
            return
        await send({"type": "http.response.body"})


async def _unknown(request: Request, _: Exception) -> JSONResponse:
    """Gradio looks up what a body names, and what it has not is a fault to it."""
    return await answer(request, Refused("the page has no function of that number"))


def mount(app: FastAPI, url: str, key: str | None = None) -> None:
    """Put the page at `/` of an application, below whatever is there already.

    Open pages are let go when the event `state.closing` of the application is set (`Closing`).
    Nothing leaves the machine: no fonts, scripts or counts come from or go elsewhere.

    Args:
        url: of the server whose knobs it turns; perhaps this application's own.
        key: for those who give none.

    Raises:
        AlignvecError: it is no URL.
    """
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    page = build(Client(url, key))
    app.state.closing = asyncio.Event()
    page.has_launched = True  # of a mounted page Gradio forgets it, and with it its checks of paths
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        allowed_paths=[],
        max_file_size=1,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,  # several people may sit at one browser
        footer_links=[],
        pwa=False,
        show_error=False,
        theme=theme.set(**_READABLE),
        css=Path(__file__).with_name("page.css").read_text("utf-8"),
    )
    whole: Any = app.router.routes.pop()
    whole.app.add_exception_handler(RequestValidationError, answer)  # its own fails at bytes
    whole.app.add_exception_handler(KeyError, _unknown)
    app.router.routes.append(_OnlyUsed("/", whole.app))


@contextmanager
def serving(url: str, host: str, port: int, key: str | None = None) -> Iterator[str]:
    """Serve the page as long as this is entered; yields its address.

    Args:
        url: of the server, which may be started later.
        port: 0 is any that is free.
        key: for those who give none.

    Raises:
        AlignvecError: the URL is none, the port is taken, or the host is not this machine's.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    install(app)
    mount(app, url, key)
    app.add_middleware(BodyLimit, most=_MOST, seconds=_SLOWEST)
    local = is_local(address_of(host, port)[1][0])
    app.add_middleware(Guard, access=Access(), local=local, host=host)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=_END
    )
    server = Closing(config, app)
    with bound(host, port) as found:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[found])))
        thread.start()
        try:
            yield url_of(found)
        finally:
            server.should_exit = True
            thread.join()
