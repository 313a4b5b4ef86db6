"""How far people agree on the levels of responses, with each other and with what was intended.

Raw agreement counts pairs of answers to the same item. Cohen's kappa compares two annotators, also
with linear and quadratic weights, since levels have an order; Fleiss' kappa compares all of them on
the items that all rated; Krippendorff's alpha takes whatever was rated. The 95% intervals are from
a bootstrap over items, none where no resample differs. What is not defined is None.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
from numpy.typing import NDArray

from alignvec.data.annotation.store import Annotations, annotator_name
from alignvec.data.forms import is_absent
from alignvec.data.records import LEVELS
from alignvec.data.sources import is_table, rows
from alignvec.errors import AlignvecError

Codes = NDArray[np.int64]  # of each item the index of a level, or -1
Values = NDArray[np.float64]  # of a measure: on the data, then on each resample

_RESAMPLES = 1000
_COLUMNS = ("item", "annotator", "level", "intended")
_WHOLE = re.compile(r"-?[0-9]+\.0+")


@dataclass(frozen=True)
class Ratings:
    """Who chose which level of which item.

    Attributes:
        levels: from low to high.
        chosen: of each item, annotator -> level; only items that somebody answered.
        intended: of each item, the level that it was written at, where that is known.
        about: of each item, what a list of disagreements shows besides.
    """

    levels: Sequence[str]
    chosen: Mapping[str, Mapping[str, str]]
    intended: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def annotators(self) -> list[str]:
        """In alphabetical order."""
        return sorted({name for answers in self.chosen.values() for name in answers})

    @property
    def majority(self) -> dict[str, str]:
        """Of each item, the level that most annotators chose; ties are left out."""
        found = {}
        for item, answers in self.chosen.items():
            (first, votes), *others = Counter(answers.values()).most_common(2)
            if not others or others[0][1] < votes:
                found[item] = first
        return found


def read_ratings(path: Path, levels: Sequence[str] | None = None) -> Ratings:
    """Ratings from the file of `alignvec data annotate`, or from a table (CSV, JSON Lines).

    Args:
        path: a table has the columns item, annotator and level, and perhaps intended. They may be
            numbers, nought among them; rows without anything are passed over.
        levels: from low to high. A file of `annotate` knows its own; those of a table are else
            avoidance, generic, expert.

    Raises:
        AlignvecError: the file is missing or neither; a column or a cell is; a level is unknown;
            somebody answers an item twice; there is no answer.
    """
    ratings = (
        _from_table(path, levels or LEVELS) if is_table(path) else _from_annotations(path, levels)
    )
    if not ratings.chosen:
        raise AlignvecError(f"{path} holds no answers yet")
    return ratings


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(15) == b"SQLite format 3"


def _from_annotations(path: Path, levels: Sequence[str] | None) -> Ratings:
    if path.is_file() and not _is_sqlite(path):
        raise AlignvecError(
            f"{path} is neither a file of `alignvec data annotate` nor a table (.csv, .tsv, "
            ".jsonl, .json, .parquet)"
        )
    store = Annotations(path)
    if levels and sorted(levels) != sorted(store.levels):
        raise AlignvecError(f"the levels of {path} are {', '.join(store.levels)}")
    names: dict[int, str] = {}
    told: Counter[str] = Counter()
    for key, item in store.items.items():  # of records that are there twice each has its answers
        name = f"{item.record}:{item.level}"
        told[name] += 1
        names[key] = name if told[name] == 1 else f"{name}#{told[name]}"
    chosen: dict[str, dict[str, str]] = {}
    about: dict[str, dict[str, Any]] = {
        names[key]: {"query": item.query, "response": item.response, "notes": {}}
        for key, item in store.items.items()
    }
    for answer in store.answers():
        chosen.setdefault(names[answer.item], {})[answer.annotator] = answer.level
        if answer.note:
            about[names[answer.item]]["notes"][answer.annotator] = answer.note
    intended = {names[key]: item.level for key, item in store.items.items()}
    return Ratings(levels or store.levels, chosen, intended, about)


def _from_table(path: Path, levels: Sequence[str]) -> Ratings:
    chosen: dict[str, dict[str, str]] = {}
    intended: dict[str, str] = {}
    answered: dict[tuple[str, str], str] = {}
    count = Counter(name.casefold() for name in levels)
    named = {low: name for name in levels if count[low := name.casefold()] == 1}

    def known(cell: str) -> str:
        """The level that a cell names, in whichever case and spacing."""
        return cell if cell in levels else named.get(" ".join(cell.split()).casefold(), cell)

    for place, row in rows(str(path)):
        if not isinstance(row, dict):
            raise AlignvecError(f"{place}: a row is a JSON object")
        cells = _cells(place, row)
        if not any(cells.values()):
            continue
        for name in _COLUMNS[:3]:
            if name not in cells:
                raise AlignvecError(
                    f"{place}: no column '{name}'; there are: {', '.join(cells)}; a table has a "
                    "row for each answer, with item, annotator and level"
                )
            if not cells[name]:
                raise AlignvecError(f"{place}: '{name}' is empty; fill it in, or leave the row out")
        item, level, wanted = (
            cells["item"], known(cells["level"]), known(cells.get("intended", "")),
        )  # fmt: skip
        annotator = annotator_name(cells["annotator"], place)
        for name in (level, wanted or level):
            if name not in levels:
                raise AlignvecError(
                    f"{place}: '{name}' is no level; name them with --levels, from low to high "
                    f"(now {','.join(levels)})"
                )
        if before := answered.get((item, annotator)):
            raise AlignvecError(
                f"{place}: '{annotator}' has answered item '{item}' at {before}; keep one of the "
                "two rows"
            )
        answered[item, annotator] = place
        chosen.setdefault(item, {})[annotator] = level
        if wanted and intended.setdefault(item, wanted) != wanted:
            raise AlignvecError(f"{place}: item '{item}' had another intended level before")
    return Ratings(levels, chosen, intended)


def _cells(place: str, row: Mapping[str, Any]) -> dict[str, str]:
    """A row's cells by the names of their columns, in lower case."""
    found: dict[str, str] = {}
    for name, value in row.items():
        column = str(name).strip().lower()
        if column in found:
            raise AlignvecError(f"{place}: two columns are called '{column}'; keep one of them")
        if column in _COLUMNS and isinstance(value, list | dict):
            raise AlignvecError(f"{place}: '{column}' is neither text nor a number")
        found[column] = _cell(value)
    return found


def _cell(value: Any) -> str:
    """As text, empty if there is nothing. A number is the same with and without a point."""
    if is_absent(value):
        return ""
    text = str(value).strip()
    return text.partition(".")[0] if _WHOLE.fullmatch(text) else text


def agreement(ratings: Ratings, seed: int = 0) -> dict[str, Any]:
    """Every measure, ready for JSON.

    Args:
        seed: of the bootstrap.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not defined becomes None
        found = _measures(ratings, seed)
    return {**found, "remarks": _remarks(ratings, found)}


def _measures(ratings: Ratings, seed: int) -> dict[str, Any]:
    names, count = ratings.annotators, len(ratings.levels)
    codes = {
        name: _codes(ratings, {item: of[name] for item, of in ratings.chosen.items() if name in of})
        for name in names
    }
    against, confusion = None, None
    if ratings.intended:
        intended, majority = _codes(ratings, ratings.intended), _codes(ratings, ratings.majority)
        against = {
            "annotators": {name: pairwise(codes[name], intended, count, seed) for name in names},
            "majority": pairwise(majority, intended, count, seed),
        }
        confusion = {level: dict.fromkeys(ratings.levels, 0) for level in ratings.levels}
        for item, level in ratings.intended.items():
            for answer in ratings.chosen.get(item, {}).values():
                confusion[level][answer] += 1
    return {
        "levels": list(ratings.levels),
        "items": len({*ratings.chosen, *ratings.intended}),
        "annotators": {name: int((codes[name] >= 0).sum()) for name in names},
        "together": _overall(list(codes.values()), count, seed),
        "pairs": [
            {"annotators": [a, b], **pairwise(codes[a], codes[b], count, seed)}
            for a, b in combinations(names, 2)
        ],
        "with_intended": against,
        "confusion": confusion,
    }


def disagreements(ratings: Ratings) -> list[dict[str, Any]]:
    """The items on which answers differ from each other or from the intended level."""
    found = []
    for item, answers in ratings.chosen.items():
        intended = ratings.intended.get(item)
        if len({*answers.values(), intended or next(iter(answers.values()))}) > 1:
            about = ratings.about.get(item, {})
            found.append({"item": item, "intended": intended, "answers": {**answers}, **about})
    return found


def _remarks(ratings: Ratings, found: Mapping[str, Any]) -> list[str]:
    """Why some measures are None."""
    together, names = found["together"], ratings.annotators
    remarks = []
    if len(names) == 1:
        remarks.append("there is one annotator, and nobody to agree with")
    elif not together["raw"]["items"]:
        remarks.append("no item was answered by two annotators")
    elif not together["fleiss"]["items"]:
        remarks.append(f"no item was answered by all {len(names)} annotators: no Fleiss' kappa")
    if len({level for answers in ratings.chosen.values() for level in answers.values()}) == 1:
        remarks.append("all answers are the same level: kappa and alpha say nothing")
    if not ratings.intended:
        remarks.append("no intended levels to compare with")
    return remarks


def _codes(ratings: Ratings, levels: Mapping[str, str]) -> Codes:
    code = {level: index for index, level in enumerate(ratings.levels)}
    return np.array([code[levels[item]] if item in levels else -1 for item in ratings.chosen])


def pairwise(a: Codes, b: Codes, levels: int, seed: int = 0) -> dict[str, Any]:
    """Raw agreement and the kappas of two raters, on the items that both rated.

    Args:
        a, b: of each item the index of a level, or -1.
        levels: how many there are.
        seed: of the bootstrap.
    """
    both = (a >= 0) & (b >= 0)
    cells = np.eye(levels**2)[a[both] * levels + b[both]]  # item -> its cell of the table
    table = (_resamples(len(cells), seed) @ cells).reshape(-1, levels, levels)
    rows, columns = table.sum(axis=2), table.sum(axis=1)
    chance = rows[:, :, None] * columns[:, None, :]
    apart = np.abs(np.subtract.outer(np.arange(levels), np.arange(levels)))
    found = {"raw": _estimate(np.trace(table, axis1=1, axis2=2) / len(cells), len(cells))}
    for name, weight in (("kappa", apart > 0), ("linear", apart), ("quadratic", apart**2)):
        by_chance = (weight * chance).sum(axis=(1, 2)) / len(cells)
        found[name] = _estimate(1 - (weight * table).sum(axis=(1, 2)) / by_chance, len(cells))
    return found


def _overall(codes: Sequence[Codes], levels: int, seed: int) -> dict[str, Any]:
    """The measures of any number of raters."""
    counts = np.stack([np.eye(levels + 1, dtype=int)[of][:, :-1] for of in codes]).sum(axis=0)
    counts = counts[counts.sum(axis=1) > 1]  # items with something to compare
    items, answers = len(counts), counts.sum(axis=1)
    weights = _resamples(items, seed)
    agreeing, pairs = (counts * (counts - 1)).sum(axis=1), answers * (answers - 1)
    everyone = counts[answers == len(codes)]
    return {
        "raw": _estimate((weights @ agreeing) / (weights @ pairs), items),
        "fleiss": _estimate(_fleiss(everyone, seed), len(everyone)),
        "alpha": _estimate(_alpha(counts, weights, "nominal"), items),
        "alpha_ordinal": _estimate(_alpha(counts, weights, "ordinal"), items),
    }


def _fleiss(counts: Codes, seed: int) -> Values:
    answers = counts.sum(axis=1)
    weights = _resamples(len(counts), seed)
    agreeing = (counts * (counts - 1)).sum(axis=1) / (answers * (answers - 1))
    share = (weights @ counts) / (weights @ answers)[:, None]
    chance = (share**2).sum(axis=1)
    kappa: Values = ((weights @ agreeing) / len(counts) - chance) / (1 - chance)
    return kappa


def _alpha(counts: Codes, weights: Values, scale: str) -> Values:
    def one(times: Values) -> float:
        try:
            drawn = np.repeat(counts, times.astype(int), axis=0)
            return float(krippendorff.alpha(value_counts=drawn, level_of_measurement=scale))
        except ValueError:  # nothing to compare
            return math.nan

    return np.array([one(times) for times in weights])


def _resamples(items: int, seed: int) -> Values:
    """How often each item counts: once in the first row, then as drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(items or 1, size=(_RESAMPLES, items))
    counted = [np.bincount(row, minlength=items) for row in drawn]
    return np.vstack([np.ones(items), *counted])


def _estimate(values: Values, items: int) -> dict[str, Any]:
    defined = values[np.isfinite(values)]
    value = float(values[0]) if np.isfinite(values[0]) else None
    # Where every resample gives the same, as where all agree, it tells nothing of how far off.
    known = value is not None and items > 1 and np.ptp(defined) > 0
    interval = np.quantile(defined, (0.025, 0.975)).tolist() if known else None
    return {"value": value, "interval": interval, "items": items}
