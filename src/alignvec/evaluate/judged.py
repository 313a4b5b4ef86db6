"""The judged rate: the level of what a model writes, where it writes a text at all.

A *miss* is a text of another level than wanted, or a broken one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from alignvec.base.messages import Messages
from alignvec.errors import AlignvecError
from alignvec.evaluate.broken import Bounds
from alignvec.evaluate.intervals import wilson_interval
from alignvec.evaluate.judge import Judge


@dataclass(frozen=True)
class Judged:
    """What a judge says of some answers. Shares are in [0, 1].

    Attributes:
        answers: how many.
        rate: level -> share of answers that are of this level and not broken.
        interval: level -> 95% interval of the rate, over queries (Wilson).
        level: level -> share of answers that are of this level, broken or not.
        untold: share of answers of which no level can be told.
        broken: share of answers that are no sound texts.
        reasons: what is wrong with the broken ones -> how many, the commonest first.
    """

    answers: int
    rate: dict[str, float]
    interval: dict[str, tuple[float, float]]
    level: dict[str, float]
    untold: float
    broken: float
    reasons: dict[str, int]

    def missed(self, level: str) -> float:
        """The share of misses where a level was wanted."""
        return 1 - self.rate[level]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Judged:
        """Raises: AlignvecError: it is nothing that `to_json` made."""
        try:
            return TypeAdapter(cls).validate_python(value)
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise AlignvecError(f"no judged rates: field '{place}' is missing or wrong") from None


def judged(
    judge: Judge,
    bounds: Bounds,
    queries: Sequence[Messages],
    texts: Sequence[str],
    levels: Sequence[str],
) -> Judged:
    """Have answers judged, at least one.

    Args:
        queries: what each text answers.
        levels: those to tell of; a judge may name others.
    """
    told = judge(queries, texts)
    wrong = [bounds.broken(text) for text in texts]
    count = len(texts)
    sound = Counter(level for level, why in zip(told, wrong, strict=True) if not why)
    rate = {level: sound[level] / count for level in levels}
    return Judged(
        answers=count,
        rate=rate,
        interval={level: wilson_interval(share, count) for level, share in rate.items()},
        level={level: told.count(level) / count for level in levels},
        untold=told.count(None) / count,
        broken=sum(why is not None for why in wrong) / count,
        reasons=dict(Counter(why for why in wrong if why).most_common()),
    )
