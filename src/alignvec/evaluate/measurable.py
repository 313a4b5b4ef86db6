"""What measuring asks of a model with knobs, whatever runs it: `KnobModel` on transformers, and the
one on vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from alignvec.base.identity import BaseId
from alignvec.base.logprobs import Row
from alignvec.base.messages import Messages
from alignvec.knobs.domains import Router
from alignvec.knobs.setting import Setting, SettingLike
from alignvec.vector.alignment_vector import AlignmentVector


class Measurable(Protocol):
    """A base with knobs that writes, and says how likely it finds what is written.

    Attributes:
        tokenizer: that `Prompt` takes for it.
        mode: how its knobs are turned, as far as that rounds otherwise.
    """

    tokenizer: PreTrainedTokenizerBase
    mode: str

    @property
    def base(self) -> BaseId:
        """Which base it is."""

    @property
    def vectors(self) -> Mapping[str, AlignmentVector]:
        """By knob, with the units that hold on this base."""

    @property
    def context(self) -> int | None:
        """Most tokens of a prompt with its answer; None: there is no end."""

    @property
    def state(self) -> str:
        """A hash of all that an answer or a likelihood depends on but the setting."""

    @property
    def setting(self) -> Setting:
        """Knob -> its strength, where nothing else is said."""

    def set(self, setting: SettingLike | None = None, /) -> Any:
        """Turn the knobs for everything that follows; a knob that is not named goes to 0."""

    def scores(self, rows: Sequence[Row], knobs: Sequence[SettingLike]) -> list[list[float]]:
        """s(l) of every response of every row, each row under a setting of its own, in nats a
        token; see `response_scores`.
        """

    def generate(
        self,
        messages: Messages | Sequence[Messages],
        knobs: Sequence[SettingLike] | None = None,
        max_new_tokens: int = 128,
        **options: Any,
    ) -> list[str]:
        """An answer to each conversation, each under a setting of its own, greedy unless
        `do_sample=True`.
        """

    def acting(self, router: Router, queries: Sequence[str]) -> NDArray[np.bool_]:
        """[N, K]: which knobs act on each query, those of the domain that the router reads."""
