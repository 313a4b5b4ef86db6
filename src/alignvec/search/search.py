"""From wanted behaviours to settings, each verified on queries that it was not sought on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from alignvec.base.seen import count_seen, prompt_hash
from alignvec.data.records import Record
from alignvec.data.sources import BUILTIN
from alignvec.errors import AlignvecError, check_known
from alignvec.evaluate.measurable import Measurable
from alignvec.evaluate.rates import rates_of
from alignvec.evaluate.retention import NO_KL, RetentionProbe
from alignvec.knobs.domains import Router, domain_of
from alignvec.knobs.setting import Setting
from alignvec.progress import progress
from alignvec.search.calibrate import trained_places
from alignvec.search.methods import METHODS
from alignvec.search.methods import method as make_method
from alignvec.search.objective import PENALTY, Objective
from alignvec.search.scorer import Array, Scorer
from alignvec.search.solution import SearchResult, Solution
from alignvec.search.target import Target

_PENALTIES = [PENALTY * 2**step for step in range(1, 8)]  # of turning the knobs, along a front


def search(
    model: Measurable,
    targets: Sequence[Target],
    records: Sequence[Record],
    held_out: Sequence[Record],
    levels: Sequence[str],
    method: str = "surface",
    passes: int | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    router: Router | None = None,
    seed: int = 0,
    front: bool = False,
    strengths: Sequence[float] = (),
) -> SearchResult:
    """A setting for each target.

    Args:
        records: queries to search on, of every domain that a target names.
        held_out: other queries, for the rates that are reported.
        method: surface, grid or optuna.
        passes: what the search may cost: over all targets (surface, grid) or for each (optuna);
            None leaves it to the method.
        limits: knob -> lowest and highest strength; -2 to 2 where not given.
        router: applies to each query only the knobs of the domain that it reads from it.
        front: also what the one target costs in retained ability, when less and less of it is got.
        strengths: of each knob, of which a grid tries every combination, whatever `passes`
            says; by default evenly spaced ones within `limits`.

    Raises:
        AlignvecError: an unknown method or knob, empty limits, a domain without queries, or a
            front of several targets, or of a model that does not give the KL that it is drawn
            against.
    """
    check_known("method", method, METHODS)
    if front and len(targets) != 1:
        raise AlignvecError(f"a front is of one target, not {len(targets)}")
    bounds = _bounds(list(model.vectors), limits or {})
    for domain in {domain for target in targets for domain in target}:
        for what, some in (("search", records), ("verify", held_out)):
            if domain not in {record.domain for record in some}:
                raise AlignvecError(f"no queries of domain '{domain}' to {what} on")

    def scorer(some: Sequence[Record]) -> Scorer:
        return Scorer(
            model,
            some,
            levels,
            model.acting(router, [record.query for record in some]) if router else None,
        )

    searched, verified = scorer(records), scorer(held_out)
    of_knob = [domain_of(knob, vector) for knob, vector in model.vectors.items()]

    def settings(penalty: float) -> Array:
        if router is None:
            return finder.solve(targets, penalty)
        # Where each knob acts on one domain alone, so does each part of a target.
        parts = _single_targets(targets)
        found = finder.solve(parts, penalty)
        return np.array([_combined(target, parts, found, of_knob) for target in targets])

    retention = RetentionProbe(model)
    if front and not retention.has_kl:
        raise AlignvecError(f"no front: {NO_KL}")
    start = time.perf_counter()
    places = [list(trained_places(vector, levels).values()) for vector in model.vectors.values()]
    finder = make_method(method, Objective(searched, bounds, places), passes, seed, strengths)
    wanted = list(zip(targets, settings(PENALTY), strict=True))
    if front:
        wanted += [(targets[0], settings(penalty)[0]) for penalty in _PENALTIES]
        wanted.append((targets[0], np.zeros(len(bounds))))
    took = time.perf_counter() - start
    start, solutions = time.perf_counter(), []
    with progress("verifying", "target", len(wanted)) as bar:
        for target, found in wanted:
            solutions.append(_verified(target, found, verified, retention))
            bar.update()
    trainings = [vector.training for vector in model.vectors.values()]
    seen = count_seen(trainings, [record.prompt for record in held_out])
    seconds = {"search": took, "verification": time.perf_counter() - start}
    return SearchResult(
        method, router is not None, len(records), searched.passes, seconds,
        solutions[: len(targets)], solutions if front else [], len(held_out), seen,
    )  # fmt: skip


def _verified(
    target: Target, strengths: Array, scorer: Scorer, retention: RetentionProbe
) -> Solution:
    scores, domains = scorer(strengths), np.array(scorer.domains)
    rates = {
        domain: rates_of(scores[domains == domain], scorer.levels)
        for domain in sorted(set(scorer.domains))
    }

    def named(values: Array) -> Setting:
        rounded = (round(float(value), 4) + 0.0 for value in values)  # no negative zero
        return dict(zip(scorer.knobs, rounded, strict=True))

    acting = [named(strengths * acts) for acts in np.unique(scorer.acting, axis=0)]
    worst = max(map(retention, acting), key=lambda one: (one.kl or 0.0, one.perplexity))
    return Solution(dict(target), named(strengths), rates, worst)


def _single_targets(targets: Sequence[Target]) -> list[Target]:
    pairs = dict.fromkeys(pair for target in targets for pair in target.items())
    return [{domain: level} for domain, level in pairs]


def _combined(
    target: Target, parts: Sequence[Target], settings: Array, of_knob: Sequence[str]
) -> Array:
    """[K]: each knob as the part of its own domain wants it; 0 where the target names none."""
    chosen = {
        domain: setting
        for part, setting in zip(parts, settings, strict=True)
        for domain, level in part.items()
        if target.get(domain) == level
    }
    return np.array(
        [chosen[domain][k] if domain in chosen else 0.0 for k, domain in enumerate(of_knob)]
    )


def split_for_search(
    records: Sequence[Record], source: str, domains: Collection[str], most: int | None = None
) -> tuple[list[Record], list[Record]]:
    """Records to search on, and others to verify on: the test part.

    Vectors of the built-in data were trained on its train part, so its validation part is
    searched; of other data, which nothing is known about, all but the test part. A query that is
    in the test part is not searched on, whatever its other ids.

    Args:
        most: queries a domain to search on.
    """
    wanted = [record for record in records if record.domain in domains]
    held_out = [record for record in wanted if record.split == "test"]
    kept_apart = {prompt_hash(record.prompt) for record in held_out}
    searched: list[Record] = []
    count: Counter[str] = Counter()
    for record in wanted:
        if record.split == "test" or (source == BUILTIN and record.split == "train"):
            continue
        if prompt_hash(record.prompt) in kept_apart:
            continue  # it comes twice, under other ids
        if most is None or count[record.domain] < most:
            count[record.domain] += 1
            searched.append(record)
    return searched, held_out


def _bounds(knobs: list[str], limits: Mapping[str, tuple[float, float]]) -> Any:
    for knob, (low, high) in limits.items():
        check_known("knob", knob, knobs)
        if not low < high:
            raise AlignvecError(f"knob '{knob}': nothing lies between {low:g} and {high:g}")
    return np.array([limits.get(knob, (-2.0, 2.0)) for knob in knobs], dtype=float)
