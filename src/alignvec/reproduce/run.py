"""A study from its first item to its last, or a part of it; and what it would take."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType

from alignvec.errors import NoNumbersError, check_known
from alignvec.files import read_object, write_json
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
    reading,
    safety,
    single_domain,
    training,
    transfer,
)
from alignvec.reproduce.cost import Cost
from alignvec.reproduce.item import Item, works
from alignvec.reproduce.study import Study

logger = logging.getLogger(__name__)

ITEMS = "items.json"  # part -> the names of its results
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
    "reading": reading,
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
    """Compute what is not there yet. A kill at any time loses at most the item in work, and one
    that computes no numbers is none that the others wait for.
    """
    note_items(study)
    every = list(items_of(study, parts))
    todo = [(part, item) for part, item in every if not study.done(item)]
    done = [item for _, item in every if study.done(item)]
    cost = Cost.of(study, done)
    seconds = [cost.seconds(work) for work in works((item for _, item in todo), done)]
    if any(map(math.isnan, seconds)):
        seconds = [1.0] * len(todo)  # a base of unknown size: a result is as good as another
    with progress("reproducing", "s", round(sum(seconds))) as bar:
        for (part, item), expected in zip(todo, seconds, strict=True):
            bar.set_postfix(part=part, result=item.name)
            try:
                study.once(item)
            except NoNumbersError as error:
                logger.warning("%s: %s has no result: %s", part, item.name, error)
            else:
                logger.info("%s: %s", part, item.name)
            bar.update(round(expected))


def note_items(study: Study) -> None:
    """Write down which results every part is to have, for the report; what an earlier run had a
    judge or a reader for stays.
    """
    note = study.out / ITEMS
    earlier = read_object(note) if note.exists() else {}
    named = {part: [item.name for item in of.items(study)] for part, of in PARTS.items()}
    write_json(note, {part: names or earlier.get(part, []) for part, names in named.items()})
