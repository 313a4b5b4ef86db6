"""OpenAI's endpoints over one engine: a request is read, turned into the engine's, and answered."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response, StreamingResponse
from openai.types import Model
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from alignvec.base.messages import last_question
from alignvec.base.prompts import Prompt, begun
from alignvec.errors import AlignvecError, untold
from alignvec.files import hash_of
from alignvec.serve.chat import ChatAnswer, ChatReply, ChatRequest
from alignvec.serve.completion import CompletionAnswer, CompletionReply, CompletionRequest
from alignvec.serve.dial import Dial, Turned
from alignvec.serve.engine import Engine
from alignvec.serve.errors import Refused, error_body, responses
from alignvec.serve.generation import Deadline, Pieces, pieces
from alignvec.serve.gone import GONE, Gone, unless_gone
from alignvec.serve.metrics import Metrics, Stopwatch
from alignvec.serve.parameters import Asked, tokens_left
from alignvec.serve.replies import Reply
from alignvec.serve.request import Busy, Piece, Request
from alignvec.serve.visit import Visit, visit_of

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_EVENT = {  # how documents see one
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
_STREAM = {"content": {"text/event-stream": {"schema": _EVENT}}}
_MAY_FAIL = responses(400, 401, 404, 408, 413, 429, 500, 503, 504)


@dataclass(frozen=True)
class Limits:
    """What one request may take.

    Attributes:
        body: bytes of it that are read.
        seconds: until it is answered.
        tokens: of a chat answer, where the request does not say.
    """

    body: int = 2**20
    seconds: float = 600.0
    tokens: int = 512


class Models(BaseModel):
    """What can be asked for."""

    object: Literal["list"] = "list"
    data: list[Model]


@dataclass(frozen=True)
class _Read:
    """A request with its prompts as tokens and its setting.

    Attributes:
        text: what is asked, for the log.
    """

    prompts: list[list[int]]
    turned: Turned
    text: str


class Events(StreamingResponse):
    """Server-sent events, whose source is closed when they end or the client goes away."""

    media_type = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().__call__(scope, receive, send)


class Endpoints:
    """Answers what OpenAI's clients ask."""

    def __init__(
        self, engine: Engine, dial: Dial, metrics: Metrics, limits: Limits, log_prompts: bool
    ) -> None:
        self._engine = engine
        self._dial = dial
        self._metrics = metrics
        self._limits = limits
        self._log_prompts = log_prompts
        self._tokenizer = engine.model.tokenizer
        self._vocabulary = int(engine.model.model.config.get_text_config().vocab_size)
        vectors = {knob: one.fingerprint() for knob, one in engine.model.vectors.items()}
        self._fingerprint = f"fp_{hash_of(engine.model.base.fingerprint, vectors)[:10]}"
        self._started = int(time.time())
        # Templates, tokenizers and the state file take their time, and one after the other.
        self._reader = ThreadPoolExecutor(1, "alignvec-reader")
        self._reading = 0  # requests there

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1")
        writes: list[tuple[str, Callable[..., Any], type[BaseModel]]] = [
            ("/chat/completions", self.chat, ChatAnswer),
            ("/completions", self.complete, CompletionAnswer),
        ]
        for path, endpoint, answer in writes:
            router.add_api_route(
                path,
                endpoint,
                methods=["POST"],
                response_model=answer,
                responses=_MAY_FAIL | {200: _STREAM},
            )
        router.add_api_route(
            "/models", self.models, response_model=Models, responses=responses(401, 500)
        )
        router.add_api_route(
            "/models/{model:path}",
            self.model,
            response_model=Model,
            responses=responses(400, 401, 404, 500),
        )
        return router

    async def chat(self, request: ChatRequest, http: HttpRequest) -> Response:
        """Answer a conversation."""
        return await self._answer(request, self._read_chat, ChatReply, http)

    async def complete(self, request: CompletionRequest, http: HttpRequest) -> Response:
        """Go on with texts."""
        return await self._answer(request, self._read_texts, CompletionReply, http)

    async def models(self) -> Models:
        """The model that is served."""
        return Models(data=[self._model(self._dial.model)])

    async def model(self, model: str) -> Model:
        """The model that is served, by its name, with knobs behind it or not."""
        await self._aside(self._dial.read, model, None, None, "")
        return self._model(model)

    def _model(self, name: str) -> Model:
        return Model(id=name, created=self._started, object="model", owned_by="alignvec")

    async def _aside(self, work: Callable[..., Result], *given: Any) -> Result:
        if self._reading >= self._engine.max_waiting:
            raise Busy(1.0)
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, work, *given)
        finally:
            self._reading -= 1

    def _read_chat(self, asked: ChatRequest) -> _Read:
        chat = asked.conversation
        question = last_question(chat)
        turned = self._dial.read(asked.model, asked.knobs, asked.profile, question)
        try:
            tokens = Prompt(self._tokenizer, chat).tokens
        except AlignvecError as error:
            raise Refused(str(error), code="invalid_value", param="messages") from error
        return _Read([tokens], turned, question)

    def _read_texts(self, asked: CompletionRequest) -> _Read:
        texts, prompts = [], []
        for prompt in asked.prompts:
            if isinstance(prompt, str):
                texts.append(prompt)
                prompts.append(begun(self._tokenizer, prompt))
                continue
            if max(prompt) >= self._vocabulary:
                raise Refused(
                    f"prompt: {max(prompt)} is no token of this model; it has {self._vocabulary}",
                    code="invalid_value",
                    param="prompt",
                )
            texts.append(self._tokenizer.decode(prompt))
            prompts.append(prompt)
        turned = self._dial.read_all(asked.model, asked.knobs, asked.profile, texts)
        return _Read(prompts, turned, texts[0])

    async def _answer(
        self, asked: Asked, reads: Callable[[Any], _Read], form: type[Reply], http: HttpRequest
    ) -> Response:
        visit, in_time = visit_of(http.scope), Deadline(self._limits.seconds)
        try:
            async with in_time():
                read = await unless_gone(http, self._aside(reads, asked))
            visit.knobs = read.turned.setting
            if self._log_prompts:
                visit.prompt = read.text
            client = visit.key or (http.client.host if http.client else "")
            reply, requests = self._asked(asked, read, form, client)
            found = self._pieces(requests, reply, visit, in_time)
            if not asked.stream:
                return await unless_gone(http, _whole(found, reply))
            # What is refused now still has a status of its own.
            first = await unless_gone(http, anext(found))
        except Gone:
            return Response(status_code=GONE)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return Events(_events(first, found, reply, visit), headers=headers)

    def _asked(
        self, asked: Asked, read: _Read, form: type[Reply], client: str
    ) -> tuple[Reply, list[Request]]:
        requests = [self._request(asked, prompt, read.turned, client) for prompt in read.prompts]
        if len(requests) > self._engine.max_waiting:  # to come again would be of no use
            raise Refused(
                f"this server lets {self._engine.max_waiting} prompts wait; send fewer at a time",
                code="invalid_value",
                param="prompt",
            )
        reply = form(
            self._dial.model,
            self._fingerprint,
            read.turned.to_json(),
            sum(map(len, read.prompts)),
            len(requests) * asked.answers,
            asked.tells_usage,
            asked.wanted_logprobs is not None,
        )
        return reply, requests

    def _request(self, asked: Asked, prompt: list[int], turned: Turned, client: str) -> Request:
        if not prompt:
            raise Refused(
                "an empty prompt gives this model nothing to go on with",
                code="invalid_value",
                param=asked.prompt_field,
            )
        if asked.answers > self._engine.max_rows:
            raise Refused(
                f"n: this server writes at most {self._engine.max_rows} answers side by side",
                code="invalid_value",
                param="n",
            )
        longest = tokens_left(
            len(prompt),
            asked.wanted_tokens,
            self._engine.context,
            asked.default_tokens or self._limits.tokens,
            asked.prompt_field,
        )
        sampling = asked.sampling(longest, self._vocabulary)
        request = Request(prompt, turned.setting, sampling, asked.answers, client, asked.continues)
        if request.n > 1 and request.n * request.longest > self._engine.cells:
            raise Refused(
                f"n: {request.n} answers of up to {request.longest} tokens with their prompt are "
                f"more than the {self._engine.cells} that this server has room for; ask for fewer "
                "or shorter ones",
                code="invalid_value",
                param="n",
            )
        return request

    async def _pieces(
        self, requests: Sequence[Request], reply: Reply, visit: Visit, in_time: Deadline
    ) -> Pieces:
        """Those of `pieces`, counted, and kept in the reply once they are sent."""
        prompt = sum(len(request.tokens) for request in requests)
        watch = Stopwatch(self._metrics, visit.began)
        try:
            async with aclosing(pieces(self._engine, requests, in_time)) as found:
                async for number, piece in found:
                    watch.take(number, piece)
                    if visit.first is None:
                        self._metrics.prompt_tokens.inc(prompt)
                        visit.first = time.perf_counter() - visit.began
                    yield number, piece
                    reply.take(number, piece)
        finally:
            visit.tokens = prompt, reply.usage.completion_tokens


async def _whole(found: Pieces, reply: Reply) -> Response:
    async with aclosing(found):
        async for _ in found:
            pass
    return Response(_json(reply.whole()), media_type="application/json")


async def _events(
    first: tuple[int, Piece], found: Pieces, reply: Reply, visit: Visit
) -> AsyncIterator[str]:
    async with aclosing(found):
        try:
            for chunk in reply.opening():
                yield _event(chunk)
            yield _event(reply.chunk(*first))
            async for number, piece in found:
                if piece.text or piece.logprobs or piece.finish:
                    yield _event(reply.chunk(number, piece))
            for chunk in reply.closing():
                yield _event(chunk)
        except Exception as error:
            known = error if isinstance(error, Refused) else None
            visit.failure = (known and known.code) or type(error).__name__
            body = (
                error_body(str(known), known.status, known.code, known.param)
                if known
                else error_body("the server failed; its log says why", 500)
            )
            yield f"event: error\ndata: {json.dumps(body)}\n\n"
            if not known:
                logger.error("a fault of alignvec: %s", untold(error))
            return
        yield "data: [DONE]\n\n"


def _event(chunk: BaseModel) -> str:
    return f"data: {_json(chunk)}\n\n"


def _json(body: BaseModel) -> str:
    return body.model_dump_json(exclude_unset=True, warnings=False)
