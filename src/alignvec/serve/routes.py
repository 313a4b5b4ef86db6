"""What is alignvec's own of the HTTP API: the knobs, the profiles, and scores under a setting.

A router for any FastAPI application, whichever engine answers behind it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from alignvec.base.messages import Messages, conversations, last_question
from alignvec.errors import AlignvecError, NoNumbersError
from alignvec.knobs.setting import Setting
from alignvec.serve.dial import Dial
from alignvec.serve.errors import Refused, Route, responses
from alignvec.serve.gone import GONE, Gone, unless_gone
from alignvec.serve.profiles import Profile, Profiles, no_profile
from alignvec.serve.state import NAME
from alignvec.serve.visit import visit_of

_MOST_RESPONSES = 100  # in one request


class Scorer(Protocol):
    """What tells how likely responses are; the engine of each server is one."""

    def score(
        self, messages: Messages, responses: Sequence[str], setting: Setting
    ) -> Coroutine[Any, Any, list[tuple[float, int]]]:
        """Of each response its log-likelihood in nats, summed over its tokens, and their number."""


def _whole(text: Any) -> Any:
    try:
        if isinstance(text, str):
            text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a character (a lone surrogate) is no text") from None
    return text


Text = Annotated[str, BeforeValidator(_whole)]  # JSON may hold what no tokenizer takes

# Fields of a request that the dial checks, whatever they hold; this is what documents say of them.
_STRENGTH = {"anyOf": [{"type": "number"}, {"type": "string", "maxLength": 64}]}
_KNOBS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": _STRENGTH,
    "description": "Knob -> strength: a number, a level, a share as 80%, or a position as 7/10. A "
    "knob that is not named is where the profile has it, else at 0, the base.",
}
Knobs = Annotated[Any, WithJsonSchema(_KNOBS)]
MaybeKnobs = Annotated[Any, WithJsonSchema({"anyOf": [_KNOBS, {"type": "null"}]})]
ProfileName = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "description": "The name of a profile, whose setting is the start.",
        }
    ),
]


class Strict(BaseModel):
    """What a request holds: numbers are numbers, texts are texts, and there is nothing else.

    A body has room for 10^5 things that are wrong, and to collect them takes seconds in which
    nobody else is heard: of unknown fields one is told, and lists without a limit fail fast.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_one_stranger(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        strangers = [name for name in body if name not in cls.model_fields]
        return {name: body[name] for name in (*cls.model_fields, *strangers[:1]) if name in body}


class Turning(BaseModel):
    """Which setting answered: the `alignvec` object of every response."""

    knobs: dict[str, float] = Field(description="Every knob, after routing and rounding.")
    profile: str | None
    domain: str | None = Field(description="That the router read in the text.")
    beyond_safe: list[str] = Field(description="Knobs turned beyond their safe range.")


class Measured(BaseModel):
    """What a knob does at its strengths, as `alignvec calibrate` and `leak` measured it."""

    queries: int
    strengths: list[float]
    top: list[float]
    position: list[float]
    leak: dict[str, dict[str, float]]


class Knob(BaseModel):
    """One knob."""

    name: str
    domain: str
    levels: dict[str, float] = Field(description="Level -> strength, from low to high.")
    safe: tuple[float, float] | None = Field(description="Between these, answers stay sound.")
    calibration: Measured | None
    default: float = Field(description="Where it is if a request says nothing.")


class KnobList(BaseModel):
    """The knobs of a model."""

    object: Literal["list"] = "list"
    model: str
    data: list[Knob]


class ProfileBody(BaseModel):
    """A profile; `etag` is what If-Match takes."""

    name: str
    knobs: dict[str, float | str] = Field(description="As they were put: levels stay words.")
    etag: str
    updated: str

    @classmethod
    def of(cls, profile: Profile) -> ProfileBody:
        return cls(
            name=profile.name, knobs=profile.setting, etag=profile.etag, updated=profile.updated
        )


class ProfileList(BaseModel):
    """Every profile, by name."""

    object: Literal["list"] = "list"
    data: list[ProfileBody]


class PutProfile(Strict):
    """What is kept under a name."""

    knobs: Knobs


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Turn(Strict):
    """What somebody said. `developer` is another word for `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    name: Text | None = Field(
        default=None, description="Of who said it; for chat templates that have a place for it."
    )

    @property
    def text(self) -> str:
        """The content in one piece."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)

    @property
    def said(self) -> dict[str, str]:
        """As chat templates know it."""
        role = "system" if self.role == "developer" else self.role
        named = {} if self.name is None else {"name": self.name}
        return {"role": role, "content": self.text, **named}


class ScoreRequest(Strict):
    """Responses to a conversation, or to a question as the user's only message."""

    messages: Annotated[list[Turn], Field(min_length=1, fail_fast=True)] | None = None
    prompt: Text | None = None
    responses: list[Annotated[Text, Field(min_length=1)]] = Field(
        min_length=1, max_length=_MOST_RESPONSES
    )
    model: str | None = None
    knobs: MaybeKnobs = None
    profile: ProfileName = None

    def asked(self) -> Messages:
        """Raises: Refused: it has both a prompt and messages, or neither."""
        if (self.messages is None) == (self.prompt is None):
            raise Refused(
                "either messages or prompt says what is answered", code="invalid_value",
                param="messages",
            )  # fmt: skip
        if self.prompt is not None:
            return self.prompt
        return [turn.said for turn in self.messages or ()]


class Score(BaseModel):
    """How likely a response is, in nats."""

    index: int
    sum: float = Field(description="Its log-likelihood.")
    tokens: int
    per_token: float = Field(description="The sum over the number of tokens.")


class ScoreList(BaseModel):
    """A score for each response, in their order."""

    object: Literal["list"] = "list"
    model: str
    data: list[Score]
    alignvec: Turning


_Name = Annotated[str, Path(pattern=f"^{NAME}$")]
_IfMatch = Annotated[
    str | None, Header(description="The ETag of the version that is meant, or * for any.")
]
_IfNoneMatch = Annotated[str | None, Header(description="*: only if there is none.")]
_ETAG = {"headers": {"ETag": {"description": "Of this version.", "schema": {"type": "string"}}}}


def knob_routes(
    dial: Dial, profiles: Profiles, scorer: Scorer | None = None, seconds: float = 600.0
) -> APIRouter:
    """`/v1/knobs`, `/v1/profiles` and, with a scorer, `/v1/score`, in so many seconds at most."""
    refusals = responses(400, 401, 429, 500)
    router = APIRouter(prefix="/v1", tags=["alignvec"], route_class=Route, responses=refusals)

    @router.get("/knobs")
    def knobs() -> KnobList:
        """What there is to turn."""
        return KnobList(model=dial.model, data=[Knob(**one) for one in dial.knobs()])

    @router.get("/profiles")
    def all_profiles() -> ProfileList:
        """The profiles."""
        return ProfileList(data=[ProfileBody.of(one) for one in profiles.all()])

    @router.get("/profiles/{name}", responses={200: _ETAG, **responses(404)})
    def profile(name: _Name, response: Response) -> ProfileBody:
        """One profile."""
        found = profiles.get(name)
        if found is None:
            raise no_profile(name)
        response.headers["ETag"] = found.etag
        return ProfileBody.of(found)

    @router.put(
        "/profiles/{name}",
        responses={
            200: _ETAG,
            201: {"model": ProfileBody, "description": "It is new.", **_ETAG},
            **responses(412, 413, 428),
        },
    )
    def put_profile(
        name: _Name,
        body: PutProfile,
        response: Response,
        if_match: _IfMatch = None,
        if_none_match: _IfNoneMatch = None,
    ) -> ProfileBody:
        """Keep a setting under a name. Of one that is there, say which version you replace."""
        kept = profiles.put(name, dial.check(body.knobs), if_match, if_none_match)
        response.headers["ETag"] = kept.etag
        response.status_code = 201 if kept.version == 1 else 200
        return ProfileBody.of(kept)

    @router.delete("/profiles/{name}", status_code=204, responses=responses(404, 412, 428))
    def delete_profile(name: _Name, if_match: _IfMatch = None) -> None:
        """Forget a profile."""
        profiles.delete(name, if_match)

    if scorer is None:
        return router

    @router.post("/score", response_model=ScoreList, responses=responses(404, 413, 503, 504))
    async def score(body: ScoreRequest, request: Request) -> ScoreList | Response:
        """How likely given responses are under a setting."""
        messages = body.asked()
        (chat,) = conversations([messages])
        question = last_question(chat)
        turned = await run_in_threadpool(dial.read, body.model, body.knobs, body.profile, question)
        visit_of(request.scope).knobs = turned.setting
        try:
            async with asyncio.timeout(seconds):
                found = await unless_gone(
                    request, scorer.score(messages, body.responses, turned.setting)
                )
        except Gone:
            return Response(status_code=GONE)
        except TimeoutError:
            raise Refused(
                f"the scores were not there after {seconds:g} s; ask for fewer", 504, "timeout"
            ) from None
        except AlignvecError as error:
            if type(error) not in (
                AlignvecError,
                NoNumbersError,
            ):  # a full engine is nothing that is wrong here
                raise
            raise Refused(str(error), code="invalid_value") from error
        return ScoreList(
            model=dial.model,
            data=[_score(index, total, tokens) for index, (total, tokens) in enumerate(found)],
            alignvec=Turning(**turned.to_json()),
        )

    return router


def _score(index: int, total: float, tokens: int) -> Score:
    if not math.isfinite(total) or not tokens:
        raise Refused(
            f"response {index} has no likelihood under this setting; turn the knobs less",
            code="no_likelihood",
            param="knobs",
        )
    return Score(index=index, sum=total, tokens=tokens, per_token=total / tokens)
