"""The application: OpenAI's endpoints, the knobs', and what operators look at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from alignvec.errors import AlignvecError
from alignvec.serve.access import Record
from alignvec.serve.body import BodyLimit
from alignvec.serve.dial import Dial
from alignvec.serve.endpoints import Endpoints, Limits
from alignvec.serve.engine import Engine
from alignvec.serve.errors import Refused, answer, install, responses
from alignvec.serve.generation import refusal
from alignvec.serve.metrics import CONTENT_TYPE, Metrics
from alignvec.serve.profiles import Profiles
from alignvec.serve.request import Busy, Failed, Stopped
from alignvec.serve.routes import knob_routes
from alignvec.serve.security import Access, Guard


@dataclass(frozen=True)
class Door:
    """Who is let in.

    Attributes:
        access: the keys.
        local: whether the address is this machine's alone.
        host: as it was asked for.
        origins: of web pages that may call the server from a browser.
    """

    access: Access
    local: bool = True
    host: str = "127.0.0.1"
    origins: Sequence[str] = ()


class Status(BaseModel):
    """How the server is."""

    status: Literal["ok"] = "ok"


def application(
    engine: Engine,
    dial: Dial,
    profiles: Profiles,
    door: Door,
    limits: Limits = Limits(),  # noqa: B008 -- it cannot be changed
    log_prompts: bool = False,
    page: Callable[[FastAPI], None] | None = None,
) -> FastAPI:
    """The server as an ASGI application; it starts and stops the engine.

    Its `state.ready` says whether it takes requests; who drains it sets that to False.

    Args:
        page: mounts the playground at `/`, behind all other routes.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        app.state.ready = True
        yield
        app.state.ready = False
        await engine.stop(0)

    app = FastAPI(
        title="alignvec",
        version=version("alignvec"),
        lifespan=life,
        docs_url=None,  # its scripts would come from elsewhere
        redoc_url=None,
    )
    app.state.ready = False
    install(app)
    for kind in (Busy, Failed, Stopped):
        app.add_exception_handler(kind, _engine_refuses)
    metrics = Metrics(engine)
    app.include_router(Endpoints(engine, dial, metrics, limits, log_prompts).router())
    app.include_router(knob_routes(dial, profiles, engine, limits.seconds))

    @app.get("/health", responses=responses(500))
    async def health() -> Status:
        """Whether the process lives."""
        return Status()

    @app.get("/ready", responses=responses(500, 503))
    async def ready() -> Status:
        """Whether requests are taken: the model is there, and the server is not going down."""
        if not app.state.ready:
            raise Refused("the server is not ready, or is going down", 503, "not_ready")
        return Status()

    @app.get("/metrics", response_class=Response, responses=responses(401, 500))
    async def counted() -> Response:
        """Counters, for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    if page is not None:
        page(app)
    # The last is the outermost.
    app.add_middleware(BodyLimit, most=limits.body, seconds=limits.seconds)
    app.add_middleware(Guard, access=door.access, local=door.local, host=door.host)
    if door.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(door.origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["ETag", "Retry-After"],
        )
    app.add_middleware(Record, metrics=metrics)
    return app


async def _engine_refuses(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AlignvecError)
    return await answer(request, refusal(error))
