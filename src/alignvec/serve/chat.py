"""`/v1/chat/completions`: what it takes, and what it sends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionTokenLogprob,
    chat_completion,
    chat_completion_chunk,
)
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from pydantic import BaseModel, Field, model_validator

from alignvec.base.messages import Conversation
from alignvec.serve.errors import Refused
from alignvec.serve.parameters import Asked, few
from alignvec.serve.replies import Reply, likelihood
from alignvec.serve.request import Piece, TokenLogprob
from alignvec.serve.routes import Strict, Text, Turn, Turning

_SILENT = ("refusal", "annotations", "audio", "function_call", "tool_calls")


class Message(Turn):
    """A turn of a conversation that is to be answered."""

    role: Literal["system", "developer", "user", "assistant"]

    @model_validator(mode="before")
    @classmethod
    def _says_only_text(cls, message: Any) -> Any:
        """An answer of ours may come back as it was sent, with what it did not have."""
        if not isinstance(message, dict):
            return message
        return {
            name: value
            for name, value in message.items()
            if name not in _SILENT or (value is not None and value != [])
        }


class TextFormat(Strict):
    """The one format of an answer."""

    type: Literal["text"]


class ChatRequest(Asked):
    """A conversation to be gone on with."""

    openai_has: ClassVar[frozenset[str]] = frozenset(CompletionCreateParamsBase.__annotations__)
    prompt_field: ClassVar[str] = "messages"

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="The new name of max_tokens."
    )
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    metadata: (
        Annotated[
            dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]],
            Field(max_length=16),
            few(16),
        ]
        | None
    ) = Field(default=None, description="Changes nothing.")
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    safety_identifier: Text | None = Field(default=None, description="Changes nothing.")
    prompt_cache_key: Text | None = Field(default=None, description="Changes nothing.")

    @model_validator(mode="after")
    def _agrees(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise Refused(
                "max_tokens and max_completion_tokens are the same; give one",
                code="invalid_value",
                param="max_tokens",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise Refused(
                "top_logprobs goes with logprobs alone", code="invalid_value", param="top_logprobs"
            )
        return self

    @property
    def conversation(self) -> Conversation:
        """As chat templates know it."""
        return [message.said for message in self.messages]

    @property
    def wanted_tokens(self) -> int | None:
        """How long an answer may be, by whichever name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """As `Sampling.top_logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None


class ChatAnswer(ChatCompletion):
    """OpenAI's, and which setting answered."""

    alignvec: Turning


class ChatReply(Reply):
    """OpenAI's ChatCompletion, or its chunks."""

    prefix = "chatcmpl"

    def opening(self) -> Sequence[BaseModel]:
        """Who speaks, in each answer."""
        return [
            self._chunk(
                index,
                {"role": "assistant", "content": "", "refusal": None},
                None,
                None,
                self._alignvec,
            )
            for index in range(len(self.answers))
        ]

    def chunk(self, index: int, piece: Piece) -> BaseModel:
        """What a step gave to answer `index`."""
        delta = {"content": piece.text} if piece.text or piece.logprobs else {}
        logprobs = (
            chat_completion_chunk.ChoiceLogprobs(content=_told(piece.logprobs), refusal=None)
            if self._logprobs and piece.logprobs
            else None
        )
        extra: dict[str, Any] = self._alignvec if piece.finish else {}
        return self._chunk(index, delta, logprobs, piece.finish, extra)

    def last(self) -> BaseModel:
        """The chunk without answers that says what it took."""
        return ChatCompletionChunk(
            object="chat.completion.chunk",
            choices=[],
            usage=self.usage,
            **self._base,
            **self._alignvec,
        )

    def whole(self) -> BaseModel:
        """All answers, once they are finished."""
        choices = [
            chat_completion.Choice(
                index=index,
                message=ChatCompletionMessage(
                    role="assistant", content=answer.text, refusal=None, annotations=[]
                ),
                logprobs=(
                    chat_completion.ChoiceLogprobs(content=_told(answer.logprobs), refusal=None)
                    if self._logprobs
                    else None
                ),
                finish_reason=answer.finish,  # type: ignore[arg-type]
            )
            for index, answer in enumerate(self.answers)
        ]
        return ChatAnswer(
            object="chat.completion",
            choices=choices,
            usage=self.usage,
            **self._base,
            **self._alignvec,
        )

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: chat_completion_chunk.ChoiceLogprobs | None,
        finish: str | None,
        extra: dict[str, Any],
    ) -> BaseModel:
        choice = chat_completion_chunk.Choice(
            index=index,
            delta=chat_completion_chunk.ChoiceDelta(**delta),
            logprobs=logprobs,
            finish_reason=finish,  # type: ignore[arg-type]
        )
        return ChatCompletionChunk(
            object="chat.completion.chunk",
            choices=[choice],
            **self._base,
            **self._no_usage,
            **extra,
        )


def _told(logprobs: Sequence[TokenLogprob]) -> list[ChatCompletionTokenLogprob]:
    return [
        ChatCompletionTokenLogprob(
            token=one.text,
            bytes=list(one.bytes),
            logprob=likelihood(one.logprob),
            top_logprobs=[
                TopLogprob(token=top.text, bytes=list(top.bytes), logprob=likelihood(top.logprob))
                for top in one.top
            ],
        )
        for one in logprobs
    ]
