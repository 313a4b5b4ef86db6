"""Who tells the level of a text: a judge, and one that learns it from reference responses.

A preference rate asks how likely given responses are; a judge reads what a model wrote. The one
here knows words and letters alone. It learns from what the authors of the data wrote at each level,
and says how often it is right on references that it has not read. It always names a level: whether
a text is one at all is not its matter (see `broken`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion

from alignvec.base.messages import Messages
from alignvec.data import Record
from alignvec.data.wording import wording
from alignvec.errors import AlignvecError
from alignvec.evaluate.intervals import wilson_interval
from alignvec.files import hash_of

_FIRMNESS = 10.0  # of the regression: the inverse of how much weights cost


class Judge(Protocol):
    """Tells levels of texts."""

    def __call__(self, queries: Sequence[Messages], texts: Sequence[str]) -> list[str | None]:
        """The level of each text, as an answer to its query; None where it cannot be told."""


@dataclass(frozen=True)
class Accuracy:
    """How often a judge is right.

    Attributes:
        texts: how many were judged.
        share: of them judged to be of the level that they were written at, in [0, 1].
        interval: 95%, of the share (Wilson).
        level: the same of the texts of each level.
    """

    texts: int
    share: float
    interval: tuple[float, float]
    level: dict[str, Accuracy] = field(default_factory=dict)

    @classmethod
    def of(cls, told: Sequence[str | None], wanted: Sequence[str]) -> Accuracy:
        """Compare what a judge says with the levels that texts, at least one, were written at."""
        right = np.array([one == other for one, other in zip(told, wanted, strict=True)])
        of = np.array(wanted)
        levels = {level: _accuracy(right[of == level]) for level in dict.fromkeys(wanted)}
        return _accuracy(right, levels)

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        for one in found["level"].values():
            del one["level"]
        return found


def _accuracy(right: Any, level: dict[str, Accuracy] | None = None) -> Accuracy:
    share = float(right.mean())
    return Accuracy(len(right), share, wilson_interval(share, len(right)), level or {})


class LevelClassifier:
    """A logistic regression on how texts are worded; a `Judge`. The query is not read.

    Attributes:
        levels: that it tells apart.
        identity: names it by what it was trained on.
    """

    def __init__(
        self,
        levels: Sequence[str],
        reader: FeatureUnion,
        model: LogisticRegression,
        trained_on: frozenset[str],
        identity: str,
    ) -> None:
        """As `fit` makes it.

        Args:
            trained_on: ids of records.
        """
        self.levels, self.identity = list(levels), identity
        self._reader, self._model, self._trained_on = reader, model, trained_on

    @classmethod
    def fit(cls, records: Sequence[Record], levels: Sequence[str]) -> LevelClassifier:
        """Train on the responses of records, those of the train part; the same ones, the same
        classifier.

        Raises:
            AlignvecError: there are fewer than two levels, no records, or too little text.
        """
        if len(set(levels)) < 2 or not records:
            raise AlignvecError("a judge of levels learns from records with at least two levels")
        texts, wanted = _references(records, levels)
        reader = wording()
        try:
            seen = reader.fit_transform(texts)
        except ValueError:  # not a word that comes twice
            raise AlignvecError(
                f"{len(records)} records have too little text to learn their levels from; a judge "
                "needs some dozens of them"
            ) from None
        model = LogisticRegression(C=_FIRMNESS, max_iter=2000).fit(seen, wanted)
        trained_on = frozenset(record.id for record in records)
        return cls(levels, reader, model, trained_on, hash_of("wording", texts, wanted))

    def __call__(self, queries: Sequence[Messages], texts: Sequence[str]) -> list[str | None]:
        """The level of each text; None of one in which there is nothing that it knows."""
        if not texts:
            return []
        seen = self._reader.transform(texts)
        known = seen.getnnz(1) > 0
        told = self._model.predict(seen)
        return [str(level) if any_ else None for level, any_ in zip(told, known, strict=True)]

    def accuracy(self, records: Sequence[Record]) -> Accuracy:
        """How often it is right on the reference responses of other records.

        Raises:
            AlignvecError: there are none, or it was trained on one of them.
        """
        if not records:
            raise AlignvecError("no records are left to measure the judge of levels on")
        if known := next((one.id for one in records if one.id in self._trained_on), None):
            raise AlignvecError(
                f"the judge of levels was trained on record '{known}'; measure it on others"
            )
        texts, wanted = _references(records, self.levels)
        return Accuracy.of(self([""] * len(texts), texts), wanted)


def cross_validated(records: Sequence[Record], levels: Sequence[str], folds: int = 10) -> Accuracy:
    """How often classifiers are right that have each read all records but those of one fold: for
    sets that are too small to hold a part out.

    Args:
        folds: every so many-th record is of one fold; no more than there are records.

    Raises:
        AlignvecError: there are fewer than two records; see `LevelClassifier.fit`.
    """
    if len(records) < 2:
        raise AlignvecError("cross-validation wants at least two records")
    told: list[str | None] = []
    wanted: list[str] = []
    for fold in range(min(folds, len(records))):
        others = [one for index, one in enumerate(records) if index % folds != fold]
        texts, levels_of = _references(records[fold::folds], levels)
        told += LevelClassifier.fit(others, levels)([""] * len(texts), texts)
        wanted += levels_of
    return Accuracy.of(told, wanted)


def _references(records: Sequence[Record], levels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Every response and its level."""
    pairs = [(record.levels[level], level) for record in records for level in levels]
    return [text for text, _ in pairs], [level for _, level in pairs]
