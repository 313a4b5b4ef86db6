"""What a setting writes: whether its answers are still texts.

A preference rate compares the likelihoods of given responses; it is high, too, where the model
itself writes loops and fragments. So answers are written, greedily and sampled, and measured beside
the rate: repetition, length, numbers, whether they end, and how likely a reader finds them that no
knob turns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignvec.base.likelihood import response_scores
from alignvec.base.load import Base
from alignvec.base.logprobs import Row
from alignvec.base.messages import Messages
from alignvec.base.prompts import Prompt
from alignvec.base.state import model_state
from alignvec.data.words import ends_sentence, pieces, word_count, words
from alignvec.errors import AlignvecError
from alignvec.evaluate.measurable import Measurable
from alignvec.knobs.setting import SettingLike
from alignvec.progress import progress

LENGTH = 128  # tokens of an answer, at most
MORE_REPEATED, MORE_NUMBERS = 0.05, 0.1  # than the base, in answers that are sound
_SAMPLING = {"do_sample": True, "temperature": 1.0, "top_p": 0.95}
_NUMBER = re.compile(r"\d+([.,]\d+)*")


@dataclass(frozen=True)
class TextQuality:
    """Means over answers.

    Attributes:
        answers: how many.
        repeated: share of 4-grams of words that stand earlier in the same answer, numbers being
            all the same, in [0, 1].
        words: in an answer.
        numbers: share of words with a digit in them, over all answers, in [0, 1].
        finished: share of answers that end with a sentence's end, in [0, 1].
        likelihood: natural log a token under the reader; an empty answer has none.
    """

    answers: int
    repeated: float
    words: float
    numbers: float
    finished: float
    likelihood: float | None = None


def text_quality(texts: Sequence[str], likelihoods: Sequence[float] | None = None) -> TextQuality:
    """Measure some texts.

    Args:
        likelihoods: of each, as `reading` gives them.
    """
    known = [value for value in likelihoods or [] if not np.isnan(value)]
    return TextQuality(
        answers=len(texts),
        repeated=round(float(np.mean([repeated(text) for text in texts])), 4),
        words=round(float(np.mean([word_count(text) for text in texts])), 2),
        numbers=round(numbers(texts), 4),
        finished=round(float(np.mean([ends_sentence(text) for text in texts])), 4),
        likelihood=round(float(np.mean(known)), 4) if known else None,
    )


def repeated(text: str, length: int = 4) -> float:
    """The share of n-grams of words that stand earlier in the text; 0 if it is shorter than one.

    Any number is as good as another: a text that counts ("20% better, 30% better, ...") goes round
    in circles too.
    """
    said = pieces(_NUMBER.sub("0", text))
    grams = [tuple(said[start : start + length]) for start in range(len(said) - length + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def variety(text: str, stretch: int = 40) -> float:
    """The share of different words without a digit, the mean over all stretches of so many words;
    0 if there are no words. It does not depend on the length of a text that has one stretch.
    """
    said = [word.lower() for word in words(_NUMBER.sub("0", text))]
    stretches = [said[start : start + stretch] for start in range(max(1, len(said) - stretch + 1))]
    different = [len({word for word in some if not _has_digit(word)}) for some in stretches]
    return float(np.mean(different)) / max(1, len(stretches[0]))


def numbers(texts: Sequence[str]) -> float:
    """The share of the words of some texts that have a digit in them; 0 if there are none."""
    said = [piece for text in texts for piece in pieces(text)]
    return sum(map(_has_digit, said)) / max(1, len(said))


def _has_digit(word: str) -> bool:
    return any(letter.isdigit() for letter in word)


def reading(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[Messages],
    texts: Sequence[str],
) -> list[float]:
    """How likely a model finds each text as an answer: natural log a token; NaN of an empty one."""
    return _reading(lambda rows: response_scores(model, rows), tokenizer, queries, texts)


def _reading(
    scores: Callable[[list[Row]], list[list[float]]],
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[Messages],
    texts: Sequence[str],
) -> list[float]:
    found = np.full(len(texts), np.nan)
    told = {
        index: row
        for index, (query, text) in enumerate(zip(queries, texts, strict=True))
        if text and (row := Prompt(tokenizer, query).row([text])).responses[0]
    }
    for index, (score,) in zip(told, scores(list(told.values())), strict=True):
        found[index] = score
    return found.tolist()


class AnswerProbe:
    """Answers of a model with knobs to some queries, and what they are like.

    Nothing is written twice: the answers of a setting are kept.
    """

    def __init__(
        self,
        model: Measurable,
        queries: Sequence[Messages],
        reader: Base | None = None,
        max_new_tokens: int = LENGTH,
        seed: int = 0,
    ) -> None:
        """Put queries to a model.

        Args:
            reader: another model, to say how likely it finds the answers; by default the base, with
                every knob at 0.
            seed: of the sampling.

        Raises:
            AlignvecError: the model has no room for an answer behind one of them.
        """
        self.model, self.queries, self._reader = model, list(queries), reader
        self._length, self._seed = max_new_tokens, seed
        if model.context:
            lengths = (len(Prompt(model.tokenizer, query).tokens) for query in self.queries)
            longest = max(lengths, default=0)
            self._length = min(max_new_tokens, model.context - longest)
            if self._length < 1:
                raise AlignvecError(
                    f"a query of {longest} tokens leaves no room for an answer: the model has "
                    f"{model.context} positions; ask for none (--answers 0), or leave it out"
                )
        self._written: dict[tuple[tuple[str, float | str], ...], dict[str, list[str]]] = {}

    @property
    def identity(self) -> list[Any]:
        """Everything that the answers depend on but the model with its knobs."""
        reader = self._reader and model_state(self._reader.model, self._reader.tokenizer)
        return [self.queries, self._length, self._seed, reader]

    def answers(self, setting: SettingLike) -> dict[str, list[str]]:
        """`greedy` and `sampled`: an answer to each query."""
        key = tuple(sorted(setting.items()))
        if key not in self._written:
            knobs = [setting] * len(self.queries)
            with torch.random.fork_rng(), progress("answering", "answer", 2 * len(knobs)) as bar:
                torch.manual_seed(self._seed)
                said: dict[str, list[str]] = {}
                ways: dict[str, dict[str, Any]] = {"greedy": {}, "sampled": _SAMPLING}
                for way, options in ways.items():
                    said[way] = self.model.generate(self.queries, knobs, self._length, **options)
                    bar.update(len(knobs))
            self._written[key] = said  # only whole: it may have been interrupted
        return self._written[key]

    def __call__(self, setting: SettingLike) -> dict[str, TextQuality]:
        """`greedy` and `sampled`: what the answers are like under a setting."""
        return {way: self.quality(texts) for way, texts in self.answers(setting).items()}

    def quality(self, texts: Sequence[str]) -> TextQuality:
        """What texts are like that answer the queries one by one, such as reference responses."""
        if self._reader is None:
            model = self.model
            read = _reading(
                lambda rows: model.scores(rows, [{}] * len(rows)),
                model.tokenizer, self.queries, texts,
            )  # fmt: skip
        else:
            read = reading(self._reader.model, self._reader.tokenizer, self.queries, texts)
        return text_quality(texts, read)


def qualities_json(found: Mapping[str, TextQuality]) -> dict[str, Any]:
    """Qualities by name, greedy and sampled or a level's, as JSON."""
    return {name: asdict(quality) for name, quality in found.items()}


def unsound(
    found: TextQuality, base: TextQuality, references: TextQuality | None = None
) -> str | None:
    """What makes answers less sound than the base's own; None: they are as sound.

    The first of: more than .05 of their 4-grams are repeated above the base's; they are more than a
    third shorter or longer than the base's and the references'; more than .1 of their words have a
    digit above those of the base or the references, whichever has more.
    """
    told = [base] + ([references] if references else [])
    lengths = [one.words for one in told]
    checks = {
        "repeats": found.repeated > base.repeated + MORE_REPEATED,
        "short": found.words < 2 / 3 * min(lengths),
        "long": found.words > 4 / 3 * max(lengths),
        "numbers": found.numbers > max(one.numbers for one in told) + MORE_NUMBERS,
    }
    return next((reason for reason, holds in checks.items() if holds), None)
