"""What is no sound text, whichever level it seems to be of: bounds, set on the base's own answers.

A judge names the level of anything, word salad too. So a text is measured as well: how much of it
is repeated, how varied its words are, how many are numbers, how many there are, and how many are
words that every text of the kind has. What the base does by itself, and what people wrote as
references, is sound; what lies beyond both is broken. A base that goes round in circles sets no
standard for that, nor do a few short texts: what a base may set has limits.

Words in a wrong order are not seen; the likelihood under another model is (`text.reading`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from alignvec.data.words import ends_sentence, words
from alignvec.errors import AlignvecError
from alignvec.evaluate.text import numbers, repeated, variety

_EDGE = 0.05  # of the base's answers lies beyond each end of what it does by itself
# Between these lies what a base may set, however well or badly it writes.
_REPEATED, _VARIETY, _NUMBERS = (0.1, 1 / 3), (0.4, 0.6), (0.1, 0.5)
_ANY = (-math.inf, math.inf)
_COMMON = 100  # words
_LEAST_COMMON, _MOST_COMMON = 0.75, 0.25  # of the least there is; and of a text, at most
_FINISHES = 0.95  # of its answers, a base that is held to it


@dataclass(frozen=True)
class Bounds:
    """What counts as broken.

    Attributes:
        repeated: share of 4-grams of words that stand earlier in the text (`text.repeated`), at
            most.
        variety: share of different words, numbers aside, in a stretch of 40 (`text.variety`), at
            least.
        numbers: share of words with a digit, at most.
        words: fewest and most.
        common: share of words that are among the `commonest`, at least.
        commonest: of the base's answers and the references, in lower case.
        finished: whether a text has to end where a sentence does.
    """

    repeated: float
    variety: float
    numbers: float
    words: tuple[float, float]
    common: float
    commonest: tuple[str, ...]
    finished: bool

    @classmethod
    def of(cls, base_answers: Sequence[str], references: Sequence[str] = ()) -> Bounds:
        """Set bounds: what 95% of the base's answers keep, and all references.

        A text may be half as long as the shortest and twice as long as the longest. It has to be
        finished if 95% of the base's answers are.

        Args:
            references: responses that people or the data's author wrote; sound by definition. The
                more the better: the commonest words are counted in them, too.

        Raises:
            AlignvecError: the base has not written a word.
        """
        own = [text for text in base_answers if words(text)]
        if not own:
            raise AlignvecError("the base's answers are empty: nothing says what a broken text is")
        told = [text for text in references if words(text)]
        counts = Counter(word for text in [*own, *told] for word in _lower(text))
        # In the order of the alphabet among equals, not of the texts.
        common = sorted(counts, key=lambda word: (-counts[word], word))[:_COMMON]

        def shared(text: str) -> float:
            """The share of common words, told by the other texts."""
            said = Counter(_lower(text))
            known = sum(said[word] for word in common if counts[word] > said[word])
            return known / said.total()

        def least(measure: Callable[[str], float], limits: tuple[float, float] = _ANY) -> float:
            edge = np.quantile([measure(text) for text in own], _EDGE)
            return float(min([np.clip(edge, *limits), *map(measure, told)]))

        def most(measure: Callable[[str], float], limits: tuple[float, float] = _ANY) -> float:
            return -least(lambda text: -measure(text), (-limits[1], -limits[0]))

        return cls(
            repeated=most(repeated, _REPEATED),
            variety=least(variety, _VARIETY),
            numbers=most(_numbers, _NUMBERS),
            words=(least(_length) / 2, most(_length) * 2),
            common=min(_LEAST_COMMON * least(shared), _MOST_COMMON),
            commonest=tuple(common),
            finished=sum(map(ends_sentence, own)) >= _FINISHES * len(own),
        )

    def broken(self, text: str) -> str | None:
        """What is wrong with a text, the first of: empty, repeated, too few different words, too
        many numbers, too short, too long, too few common words, unfinished. None of a sound one.
        """
        length = _length(text)
        checks = {
            "empty": length == 0,
            "repeats itself": repeated(text) > self.repeated,
            "few different words": variety(text) < self.variety,
            "numbers": _numbers(text) > self.numbers,
            "too short": length < self.words[0],
            "too long": length > self.words[1],
            "few common words": self._common(text) < self.common,
            "unfinished": self.finished and not ends_sentence(text),
        }
        return next((reason for reason, found in checks.items() if found), None)

    def _common(self, text: str) -> float:
        known = frozenset(self.commonest)
        said = _lower(text)
        return sum(word in known for word in said) / max(1, len(said))

    @property
    def stated(self) -> str:
        """The bounds in a sentence."""
        fewest, most = self.words
        end = ", or does not end where a sentence does" if self.finished else ""
        return (
            f"A text is broken if it is empty, if more than {self.repeated:.0%} of its 4-grams "
            f"stand in it before, if fewer than {self.variety:.0%} of its words, in a stretch of "
            f"40, are different ones and no numbers, if more than {self.numbers:.0%} of its words "
            f"have a digit, if it has fewer than {fewest:.0f} or more than {most:.0f} words, if "
            f"fewer than {self.common:.0%} of them are among the {len(self.commonest)} commonest"
            f"{end}."
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "stated": self.stated}


def _lower(text: str) -> list[str]:
    return [word.lower() for word in words(text)]


def _length(text: str) -> int:
    return len(words(text))


def _numbers(text: str) -> float:
    return numbers([text])
