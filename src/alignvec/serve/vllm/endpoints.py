"""vLLM's endpoint plugin `alignvec`: knobs and profiles on its HTTP server, if `VLLM_PLUGINS` names
it.

`/v1/knobs` and `/v1/profiles` are Serve's. vLLM's own routes stay vLLM's: before one of them its
body is steered, and behind it the response says which setting answered.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Coroutine
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, params
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from starlette.datastructures import State
from vllm.engine.protocol import EngineClient
from vllm.logger import init_logger

from alignvec.errors import AlignvecError, one_line
from alignvec.knobs.setting import parse_setting
from alignvec.route.router import Router
from alignvec.serve.dial import Dial
from alignvec.serve.errors import Refused, answer
from alignvec.serve.profiles import NoProfiles, Profiles
from alignvec.serve.routes import knob_routes
from alignvec.serve.vllm.front import bank_of
from alignvec.serve.vllm.marks import marked
from alignvec.serve.vllm.request import carrier
from alignvec.serve.vllm.steering import Steering, Way, texts_of
from alignvec.serve.vllm.told import VECTORS, Told

logger = init_logger("vllm.alignvec")  # vLLM shows what is logged below its own name

_COMPUTE_NOTHING = (
    "/tokenize",
    "/detokenize",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/derender",
    "/v1/completions/derender",
)
_WAYS = {
    **dict.fromkeys(_COMPUTE_NOTHING, Way.COMPUTES_NOTHING),
    # Its fields are not declared, but handed on to those of one chat.
    "/v1/chat/completions/batch": Way.XARGS,
    # It reads the body itself, and answers as the route that the body is of.
    "/invocations": Way.XARGS,
}


class Endpoints:
    """The plugin, as vLLM wants one."""

    name = "alignvec"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """The knobs are known when the engine is, and some of vLLM's routes come after this."""
        self._app = app

    async def init_state(
        self, engine_client: EngineClient | None, state: State, args: Namespace
    ) -> None:
        """Load the knobs and put the routes in place.

        Raises:
            AlignvecError: the environment says what is none, or vLLM does not take the vectors.
        """
        assert engine_client is not None  # only a server without `generate` has none
        told = Told.read() or Told({})
        bank = bank_of(engine_client.vllm_config)
        vectors = bank.vectors if bank else {}
        models = state.openai_serving_models
        names = [one.name for one in models.base_model_paths]
        profiles = Profiles(Path(told.state)) if told.state else NoProfiles()
        router = Router.load(Path(told.router)) if told.router else None
        default = parse_setting(told.default) if told.default else {}
        dial = Dial(names[0], vectors, profiles, default, router)

        def decode(tokens: list[int]) -> str:
            return str(engine_client.get_tokenizer().decode(tokens))

        texts = partial(texts_of, decode=decode) if router else None
        adapters, resolves = models.lora_requests, bool(models.lora_resolvers)
        steer(self._app, Steering(dial, names, adapters, resolves, texts))
        self._app.include_router(knob_routes(dial, profiles))
        if not bank:
            logger.warning("no knobs: start vLLM with %s=KNOB=PATH,...", VECTORS)
            return
        try:
            await engine_client.add_lora(carrier({}))
        except Exception as error:
            raise AlignvecError(f"vLLM does not take the vectors: {one_line(error)}") from error
        logger.info("%s has knobs: %s", names[0], ", ".join(vectors))


def steer(app: FastAPI, steering: Steering) -> None:
    """Have the requests of all of an application's routes that take a model's name steered.

    Raises:
        AlignvecError: there is none; from 0.137 on FastAPI keeps them within those it includes.
    """
    routes, steered = app.router.routes, 0
    for number, route in enumerate(routes):
        if isinstance(route, APIRoute) and (way := _way(route)) is not None:
            steered += 1
            routes[number] = _steered(steering, way, _is_form(route))(
                route.path,
                route.endpoint,
                methods=route.methods,
                name=route.name,
                dependencies=route.dependencies,
                responses=route.responses,
                response_model=route.response_model,
                response_class=route.response_class,
                include_in_schema=route.include_in_schema,
            )
    if not steered:
        raise AlignvecError(
            "none of vLLM's routes is found in this FastAPI: pip install 'fastapi<0.137'"
        )


def _way(route: APIRoute) -> Way | None:
    """None of a route that is none of the model's."""
    if "POST" not in (route.methods or ()):
        return None
    if route.path in _WAYS:
        return _WAYS[route.path]
    bodies = [one.field_info.annotation for one in route.dependant.body_params]
    fields = {name for body in bodies for name in getattr(body, "model_fields", ())}
    if "sampling_params" in fields:
        return Way.SAMPLING
    if "vllm_xargs" in fields and not _is_form(route):
        return Way.XARGS
    return Way.UNSTEERED if "model" in fields else None


def _is_form(route: APIRoute) -> bool:
    return any(isinstance(one.field_info, params.Form) for one in route.dependant.body_params)


def _steered(steering: Steering, way: Way, is_form: bool) -> type[APIRoute]:
    class Steered(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def told(request: Request) -> Response:
                try:
                    # Kept by the request, and what is changed in it, vLLM reads.
                    body = dict(await request.form()) if is_form else await request.json()
                except (JSONDecodeError, UnicodeDecodeError, RecursionError):
                    return await handle(request)  # vLLM says what is wrong with it
                if not isinstance(body, dict):
                    return await handle(request)
                try:
                    turned = await run_in_threadpool(steering.steer, body, way)
                except Refused as error:
                    return await answer(request, error)
                response = await handle(request)
                if turned is None or way is Way.COMPUTES_NOTHING:
                    return response
                return marked(response, turned)

            return told

    return Steered
