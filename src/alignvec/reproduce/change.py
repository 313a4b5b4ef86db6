"""Part 7, the cost of change (the paper: 12 times): every behaviour by vectors and a search, and by
a retraining for each.

No model is run: the times are those that the trainings and the search of the other parts took.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import mean
from typing import Any

from alignvec.reproduce import behaviours
from alignvec.reproduce.item import Item, Shared
from alignvec.reproduce.study import Study
from alignvec.reproduce.training import ALONG, ONE_SIDED, record_of, trainings, vector
from alignvec.search.target import format_target

TITLE = "Cost of change"


def items(study: Study) -> Iterator[Item]:
    """One item, after several domains."""
    if len(study.domains) > 1:
        shared: Shared = {}
        for one in _timed(study):
            shared = {**shared, **one.shared}
        for way in (ALONG, ONE_SIDED):
            shared = {**shared, **trainings(study, way, study.domains)}
        yield Item("change", partial(_counted, study), shared=shared)


def _timed(study: Study) -> Iterator[Item]:
    """What of the other parts is timed."""
    yield behaviours.search_item(study)
    yield from behaviours.retrainings(study)


def _counted(study: Study) -> dict[str, Any]:
    """Seconds of each way; a retraining that was not run counts as the mean of those that were."""
    for item in _timed(study):
        study.once(item)
    for domain in study.domains:
        for way in (ALONG, ONE_SIDED):
            vector(study, way, domain)
    names = [behaviours.retrained_name(one) for one in behaviours.retrained(study)]
    each = mean(_training(study, name) for name in names)
    every = len(study.levels) ** len(study.domains)
    search = study.result("behaviours/search")["seconds"]["search"]
    plain = sum(_training(study, f"{ONE_SIDED}-{domain}") for domain in study.domains) + search
    bank = _training(study, f"{ALONG}-bank")
    return {
        "behaviours": every,
        "retrained": {
            "seconds": every * each, "each": each,
            "measured": [format_target(one) for one in behaviours.retrained(study)],
        },
        "along": {"seconds": bank, "times": every * each / bank},
        "one-sided": {"seconds": plain, "search": search, "times": every * each / plain},
    }  # fmt: skip


def _training(study: Study, name: str) -> float:
    return float(record_of(study, name)["seconds"])
