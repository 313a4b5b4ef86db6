"""What is measured: a model that is made to behave in some way, and what it does then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alignvec.base.load import Base
from alignvec.base.messages import Messages, conversations, last_question
from alignvec.data import Record
from alignvec.evaluate.broken import Bounds
from alignvec.evaluate.judge import Judge
from alignvec.evaluate.judged import judged
from alignvec.evaluate.measurable import Measurable
from alignvec.evaluate.rates import rates_of
from alignvec.evaluate.text import reading, text_quality
from alignvec.files import hash_of
from alignvec.knobs.domains import Router, routed
from alignvec.knobs.setting import Setting, check_setting
from alignvec.search.scorer import Scorer


class Subject(Protocol):
    """A model made to behave in some way: by knobs, a prompt, a steering vector. All are measured
    alike.

    Attributes:
        identity: of two subjects that do the same, the same; None: not known.
    """

    identity: str | None

    def scores(self, records: Sequence[Record], levels: Sequence[str]) -> NDArray[np.float64]:
        """[Q, L]: s(l) of each record's reference response of each level, in nats a token."""

    def answers(self, queries: Sequence[Messages], max_new_tokens: int) -> list[str]:
        """A greedy answer to each query."""


class Turned:
    """A model with its knobs at a setting; with a router, each on the queries of its own domain."""

    def __init__(self, model: Measurable, setting: Setting, router: Router | None = None) -> None:
        self.model, self.router = model, router
        self.setting = check_setting(setting, model.vectors, warn=False)
        turned = {
            model.vectors[knob].fingerprint(): strength
            for knob, strength in self.setting.items()
            if strength
        }
        base = [model.base.fingerprint, model.base.detail]
        self.identity = None if router else hash_of(base, turned)[:12]

    def scores(self, records: Sequence[Record], levels: Sequence[str]) -> NDArray[np.float64]:
        queries = [record.query for record in records]
        acting = self.model.acting(self.router, queries) if self.router else None
        scorer = Scorer(self.model, records, levels, acting)
        return scorer(np.array([self.setting[knob] for knob in scorer.knobs]))

    def answers(self, queries: Sequence[Messages], max_new_tokens: int) -> list[str]:
        settings = [self.setting] * len(queries)
        if self.router:
            asked = [last_question(chat) for chat in conversations(queries)]
            settings = routed(settings, self.model.acting(self.router, asked))
        return self.model.generate(queries, settings, max_new_tokens)


def measured(
    subject: Subject,
    records: Sequence[Record],
    levels: Sequence[str],
    answers: int,
    max_new_tokens: int,
    judge: Judge,
    bounds: Bounds,
    reader: Base | None = None,
    shown: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Both rates side by side, and what the texts are like that the second one is of.

    Args:
        answers: records, from the first, whose queries are answered; of the same texts come the
            judged rate and everything beside it.
        reader: another model, to say how likely it finds the texts.
        shown: what of a text is the answer.

    Returns:
        `rates` (of likelihood, see `Rates`), `judged` (see `Judged`), `text` (see `TextQuality`),
        and the texts themselves, `answers`.

    Raises:
        NoNumbersError: the subject computes none.
    """
    asked = [record.prompt for record in records[:answers]]
    texts = [*map(shown, subject.answers(asked, max_new_tokens))]
    read = reading(reader.model, reader.tokenizer, asked, texts) if reader else None
    return {
        "rates": asdict(rates_of(subject.scores(records, levels), levels)),
        "judged": judged(judge, bounds, asked, texts, levels).to_json(),
        "text": asdict(text_quality(texts, read)),
        "answers": texts,
    }


def unread(found: Any) -> bool:
    """Whether something is what `measured` gives, with texts that no reader has read."""
    text = found.get("text") if isinstance(found, dict) else None
    if not isinstance(text, dict) or text.get("likelihood") is not None:
        return False
    return any(one.strip() for one in found["answers"])
