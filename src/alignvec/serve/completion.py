"""`/v1/completions`: what it takes, and what it sends."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from openai.types import Completion
from openai.types.completion_choice import CompletionChoice, Logprobs
from openai.types.completion_create_params import CompletionCreateParamsBase
from pydantic import BaseModel, Field, model_validator

from alignvec.serve.errors import Refused
from alignvec.serve.parameters import MOST_ANSWERS, Asked
from alignvec.serve.replies import Reply, likelihood
from alignvec.serve.request import Piece, TokenLogprob
from alignvec.serve.routes import Text, Turning

_Token = Annotated[int, Field(ge=0)]
_Tokens = Annotated[list[_Token], Field(min_length=1, fail_fast=True)]


class CompletionRequest(Asked):
    """Texts to be gone on with, as they stand: no chat template is put around them."""

    openai_has: ClassVar[frozenset[str]] = frozenset(CompletionCreateParamsBase.__annotations__)
    prompt_field: ClassVar[str] = "prompt"
    default_tokens: ClassVar[int | None] = 16
    continues: ClassVar[bool] = True

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_ANSWERS)]
        | _Tokens
        | Annotated[list[_Tokens], Field(min_length=1, max_length=MOST_ANSWERS)]
    ) = Field(description="A text or several, or the tokens of one or of several.")
    logprobs: int | None = Field(default=None, ge=0, le=5)
    echo: Literal[False] | None = None
    best_of: int | None = Field(
        default=None, ge=1, le=MOST_ANSWERS, description="As many as n: none is held back."
    )

    @model_validator(mode="after")
    def _agrees(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.answers:
            raise Refused(
                "best_of other than n is not supported by this server; leave it out",
                code="unsupported_value",
                param="best_of",
            )
        if len(self.prompts) * self.answers > MOST_ANSWERS:
            raise Refused(
                f"{len(self.prompts)} prompts with {self.answers} answers each; a request has at "
                f"most {MOST_ANSWERS} answers",
                code="invalid_value",
                param="n",
            )
        return self

    @property
    def wanted_logprobs(self) -> int | None:
        """As `Sampling.top_logprobs`."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each a text, or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class CompletionAnswer(Completion):
    """OpenAI's, and which setting answered."""

    alignvec: Turning


class CompletionReply(Reply):
    """OpenAI's Completion; its chunks have the same form."""

    prefix = "cmpl"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the tokens that were told: the characters, and the bytes of one that is not whole yet.
        self._written = [0] * len(self.answers)
        self._bytes = [getincrementaldecoder("utf-8")("replace") for _ in self.answers]

    def opening(self) -> Sequence[BaseModel]:
        """Nothing stands before the text."""
        return []

    def chunk(self, index: int, piece: Piece) -> BaseModel:
        """What a step gave to answer `index`."""
        extra = self._alignvec if piece.finish or not self.answers[index].text else {}
        choice = self._choice(index, piece.text, piece.logprobs, piece.finish)
        return Completion(
            object="text_completion", choices=[choice], **self._base, **self._no_usage, **extra
        )

    def last(self) -> BaseModel:
        """The chunk without answers that says what it took."""
        return Completion(
            object="text_completion", choices=[], usage=self.usage, **self._base, **self._alignvec
        )

    def whole(self) -> BaseModel:
        """All answers, once they are finished."""
        choices = [
            self._choice(index, answer.text, answer.logprobs, answer.finish)
            for index, answer in enumerate(self.answers)
        ]
        return CompletionAnswer(
            object="text_completion",
            choices=choices,
            usage=self.usage,
            **self._base,
            **self._alignvec,
        )

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish: str | None
    ) -> CompletionChoice:
        told = None
        if self._logprobs:
            offsets = []
            for one in logprobs:
                offsets.append(self._written[index])
                self._written[index] += len(self._bytes[index].decode(bytes(one.bytes)))
            told = Logprobs(
                text_offset=offsets,
                tokens=[one.text for one in logprobs],
                token_logprobs=[likelihood(one.logprob) for one in logprobs],
                top_logprobs=[
                    {top.text: likelihood(top.logprob) for top in (*reversed(one.top), one)}
                    for one in logprobs
                ],
            )
        # Of a chunk before the last there is none, which OpenAI's own type does not foresee.
        return CompletionChoice.model_construct(
            index=index, text=text, logprobs=told, finish_reason=finish
        )
