"""What a request may ask for at both of OpenAI's endpoints, and how what it may not is refused.

The models are the OpenAPI document. What OpenAI has and this server has not is refused by name, as
is what nobody has: nothing that a client asks for is passed over. Null stands for what is not said.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from alignvec.serve.errors import Refused
from alignvec.serve.routes import MaybeKnobs, ProfileName, Strict, Text
from alignvec.serve.sampling import Sampling

MOST_ANSWERS = 128  # of one request, as OpenAI has it
_MOST_BIASES = 1024
_GREEDY = 1e-4  # the likeliest token has all there is at temperatures below


def few(most: int) -> BeforeValidator:
    """Of an object: pydantic counts its entries only when it has looked at each."""

    def check(entries: Any) -> Any:
        if isinstance(entries, dict) and len(entries) > most:
            raise ValueError(f"it has {len(entries)} entries; at most {most} are taken")
        return entries

    return BeforeValidator(check)


_StopString = Annotated[Text, Field(min_length=1)]


class _Strict(Strict):
    """As JSON has numbers: finite ones."""

    model_config = ConfigDict(allow_inf_nan=False)


class StreamOptions(_Strict):
    """How a stream is told."""

    include_usage: bool | None = Field(
        default=None, description="A last chunk says what it took, in tokens."
    )
    include_obfuscation: Literal[False] | None = None


class Asked(_Strict):
    """The fields that chat and completions share."""

    # What OpenAI has beyond the fields below: of the endpoint, from its own types.
    openai_has: ClassVar[frozenset[str]] = frozenset()
    prompt_field: ClassVar[str]
    continues: ClassVar[bool] = False  # whether an answer is one text with the prompt
    default_tokens: ClassVar[int | None] = None  # None: the server's

    model: Text = Field(
        description="As /v1/models names it; knobs may follow: `embedded:medical=0.7`."
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, description="Of each answer.")
    n: int | None = Field(default=1, ge=1, le=MOST_ANSWERS, description="Answers to each prompt.")
    stop: _StopString | Annotated[list[_StopString], Field(max_length=4)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    temperature: float | None = Field(default=1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(default=1.0, ge=0, le=1)
    frequency_penalty: float | None = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float | None = Field(default=0.0, ge=-2, le=2)
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,9}$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=_MOST_BIASES),
            few(_MOST_BIASES),
        ]
        | None
    ) = Field(default=None, description="Token id -> what is added to its logit.")
    user: Text | None = Field(default=None, description="Changes nothing.")
    knobs: MaybeKnobs = None
    profile: ProfileName = None

    @model_validator(mode="before")
    @classmethod
    def _is_known(cls, body: Any) -> Any:
        """Refuse a field that is not taken, by its name; null asks for nothing."""
        if not isinstance(body, dict):
            return body
        for name in body:
            if name in cls.model_fields or (name in cls.openai_has and body[name] is None):
                continue
            if name in cls.openai_has:
                raise Refused(
                    f"'{name}' is not supported by this server; leave it out",
                    code="unsupported_parameter",
                    param=name,
                )
            close = get_close_matches(name, cls.model_fields, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise Refused(
                f"'{name}' is no parameter that is known{hint}",
                code="unknown_parameter",
                param=name,
            )
        return {name: value for name, value in body.items() if name in cls.model_fields}

    @model_validator(mode="after")
    def _streams(self) -> Asked:
        if self.stream_options is not None and not self.stream:
            raise Refused(
                "stream_options goes with stream alone",
                code="invalid_value",
                param="stream_options",
            )
        return self

    @property
    def answers(self) -> int:
        """How many to each prompt."""
        return self.n or 1

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with a chunk that says what it took."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wanted_tokens(self) -> int | None:
        """How long an answer may be; None if that is not said."""
        return self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """As `Sampling.top_logprobs`."""
        raise NotImplementedError

    def sampling(self, max_tokens: int, vocabulary: int) -> Sampling:
        """What the engine is told.

        Args:
            vocabulary: how many tokens the model has.

        Raises:
            Refused: `logit_bias` names a token that the model has not.
        """
        bias = {int(token): value for token, value in (self.logit_bias or {}).items()}
        for token in bias:
            if token >= vocabulary:
                raise Refused(
                    f"logit_bias: {token} is no token of this model; it has {vocabulary}",
                    code="invalid_value",
                    param="logit_bias",
                )
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        temperature = _or(self.temperature, 1.0)
        return Sampling(
            max_tokens=max_tokens,
            temperature=temperature if temperature >= _GREEDY else 0.0,
            top_p=_or(self.top_p, 1.0),
            seed=self.seed,
            stop=tuple(stop),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            logit_bias=bias,
            top_logprobs=self.wanted_logprobs,
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def tokens_left(prompt: int, wanted: int | None, context: int, default: int, field: str) -> int:
    """How many tokens an answer may have.

    Args:
        prompt: tokens of the prompt.
        wanted: what was asked for; None for the default, or less where there is less room.
        context: the most tokens of prompt and answer together.
        field: that the prompt came in.

    Raises:
        Refused: there is no room for so many.
    """
    left = context - prompt
    if left < (wanted or 1):
        more = f" and {wanted} are asked for" if wanted else ""
        raise Refused(
            f"this model's context is {context} tokens; the prompt has {prompt}{more}",
            code="context_length_exceeded",
            param=field,
        )
    return wanted or min(default, left)
