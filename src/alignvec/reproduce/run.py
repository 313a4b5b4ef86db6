"""A study from its first item to its last, or a part of it; and what it would take."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType

from alignvec.errors import check_known
from alignvec.progress import progress
from alignvec.reproduce import (
    ability,
    baselines,
    behaviours,
    change,
    data,
    inference,
    judging,
    over_generalisation,
    safety,
    single_domain,
    training,
    transfer,
)
from alignvec.reproduce.cost import Cost
from alignvec.reproduce.item import Item
from alignvec.reproduce.study import Study

logger = logging.getLogger(__name__)

PARTS: Mapping[str, ModuleType] = {
    "training": training,
    "single": single_domain,
    "leak": over_generalisation,
    "behaviours": behaviours,
    "safety": safety,
    "transfer": transfer,
    "inference": inference,
    "change": change,
    "baselines": baselines,
    "ability": ability,
    "judging": judging,
    "data": data,
}


def items_of(study: Study, parts: Sequence[str] = ()) -> Iterator[tuple[str, Item]]:
    """Part and item, in the order in which they are run; each item once.

    Raises:
        AlignvecError: an unknown part.
    """
    for part in parts:
        check_known("part", part, PARTS)
    seen: set[str] = set()
    for part in parts or PARTS:
        for item in PARTS[part].items(study):
            if item.name not in seen:
                seen.add(item.name)
                yield part, item


def run(study: Study, parts: Sequence[str] = ()) -> None:
    """Compute what is not there yet. A kill at any time loses at most the item in work."""
    every = list(items_of(study, parts))
    todo = [(part, item) for part, item in every if not study.done(item)]
    cost = Cost.of(study, [item for _, item in every if study.done(item)])
    seconds = [cost.seconds(item.work) for _, item in todo]
    if any(map(math.isnan, seconds)):
        seconds = [1.0] * len(todo)  # a base of unknown size: a result is as good as another
    with progress("reproducing", "s", round(sum(seconds))) as bar:
        for (part, item), expected in zip(todo, seconds, strict=True):
            bar.set_postfix(part=part, result=item.name)
            study.once(item)
            bar.update(round(expected))
            logger.info("%s: %s", part, item.name)
