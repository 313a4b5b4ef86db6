"""Part 10, the data: its sheet, what cleaning rejects, and whether a reader of texts alone tells
the levels as their authors meant them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from alignvec.data.quality.clean import clean
from alignvec.data.quality.stats import statistics
from alignvec.reproduce.item import Item
from alignvec.reproduce.study import Study

TITLE = "Data"


def items(study: Study) -> Iterator[Item]:
    """Three items, none of which runs a model."""
    yield Item("data/statistics", partial(_statistics, study))
    yield Item("data/cleaning", partial(_cleaning, study))
    yield Item("data/levels", partial(_levels, study))


def _statistics(study: Study) -> dict[str, Any]:
    return statistics(study.data, levels=study.levels)


def _cleaning(study: Study) -> dict[str, Any]:
    return clean(study.data, levels=study.levels).report()


def _levels(study: Study) -> dict[str, Any]:
    """How far the classifier's levels of held-out references are those of their authors."""
    confused: dict[str, Counter[str]] = {level: Counter() for level in study.levels}
    for domain in study.domains:
        for record in study.records(domain, "test"):
            texts = [record.levels[level] for level in study.levels]
            read = study.judge([record.prompt] * len(texts), texts)
            for level, told in zip(study.levels, read, strict=True):
                confused[level][str(told)] += 1
    held_out = [one for domain in study.domains for one in study.records(domain, "test")]
    return {
        "accuracy": study.judge.accuracy(held_out).to_json(),
        "told": {level: dict(counts) for level, counts in confused.items()},
    }
