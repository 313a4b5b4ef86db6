"""From wanted behaviours to settings, each verified on queries that the search did not see."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from alignvec.data import BUILTIN, Record, split_of
from alignvec.errors import AlignvecError, check_known
from alignvec.evaluate.rates import Rates, rates_of
from alignvec.knobs import KnobModel
from alignvec.knobs.route import domain_of
from alignvec.search.methods import METHODS
from alignvec.search.neutral import Neutral, Retained
from alignvec.search.scorer import PRICE, Scorer
from alignvec.search.target import Target, written

if TYPE_CHECKING:
    from alignvec.knobs.route import Router
    from alignvec.knobs.setting import Setting
    from alignvec.search.scorer import Array

FIRM = 0.6  # the stricter count asks for this rate
_PRICES = [PRICE * 2**step for step in range(1, 8)]  # of turning the knobs, along a front


@dataclass(frozen=True)
class Found:
    """A setting for a target, and what it does on held-out queries.

    Attributes:
        rates: domain -> preference rates there.
        retained: on neutral prose. With routing, under the knobs of the domain that is worst off.
    """

    target: Target
    setting: Setting
    rates: dict[str, Rates]
    retained: Retained | None = None

    @property
    def reached(self) -> bool:
        """Whether in every domain of the target the wanted level has the highest rate."""
        return all(
            rate[level] > max(other for name, other in rate.items() if name != level)
            for level, rate in self._wanted()
        )

    @property
    def firmly(self) -> bool:
        """Whether it is reached with a rate of at least 0.6 in every domain."""
        return self.reached and all(rate[level] >= FIRM for level, rate in self._wanted())

    @property
    def least(self) -> tuple[str, float]:
        """The domain whose wanted level has the lowest rate, and that rate."""
        rate = {domain: self.rates[domain].rate[level] for domain, level in self.target.items()}
        return min(rate.items(), key=lambda item: item[1])

    def _wanted(self) -> list[tuple[str, dict[str, float]]]:
        return [(level, self.rates[domain].rate) for domain, level in self.target.items()]

    def __str__(self) -> str:
        at = ",".join(f"{knob}={strength:.2f}" for knob, strength in self.setting.items())
        if self.reached:
            return f"{written(self.target)}: {at}"
        domain, rate = self.least
        return (
            f"{written(self.target)} is not reachable; nearest is {at} "
            f"({domain}: {self.target[domain]} at {rate:.2f})"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reached": self.reached, "firmly": self.firmly}


@dataclass(frozen=True)
class Search:
    """What a search found, and its cost.

    Attributes:
        passes: over the search queries, the cost in model evaluations; without verification.
        seconds: of the search, and of verification.
        front: of a single target, if asked for: settings that turn the knobs ever less, from what
            the target asks to the base.
    """

    method: str
    routed: bool
    queries: int
    passes: int
    seconds: dict[str, float]
    found: list[Found]
    front: list[Found] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """Its outcome and its cost in one line."""
        reached, firmly = (
            sum(getattr(f, how) for f in self.found) for how in ("reached", "firmly")
        )
        return (
            f"{reached} of {len(self.found)} reached, {firmly} with rates of at least {FIRM}; "
            f"{self.passes} passes over {self.queries} queries, {self.seconds['search']:.0f} s"
        )

    def to_json(self) -> dict[str, Any]:
        lists = {
            name: [one.to_json() for one in getattr(self, name)] for name in ("found", "front")
        }
        return {**asdict(self), **lists}


def search(
    model: KnobModel,
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
    on_pass: Callable[[int, int], None] = lambda done, total: None,
    on_verified: Callable[[int, int], None] = lambda done, total: None,
) -> Search:
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

    Raises:
        AlignvecError: an unknown method or knob, empty limits, a domain without queries, or a
            front of several targets.
    """
    check_known("method", method, METHODS)
    if front and len(targets) != 1:
        raise AlignvecError(f"a front is of one target, not {len(targets)}")
    box = _box(list(model.vectors), limits or {})
    for domain in {domain for target in targets for domain in target}:
        for what, some in (("search", records), ("verify", held_out)):
            if domain not in {record.domain for record in some}:
                raise AlignvecError(f"no queries of domain '{domain}' to {what} on")

    def scorer(some: Sequence[Record]) -> Scorer:
        return Scorer(
            model,
            some,
            levels,
            router.applied(model, [record.query for record in some]) if router else None,
        )

    searched, verified = scorer(records), scorer(held_out)
    of_knob = [domain_of(knob, vector) for knob, vector in model.vectors.items()]

    def settings(price: float) -> Array:
        if router is None:
            return finder.best(targets, price)
        # Where each knob acts on one domain alone, so does each part of a target.
        parts = _parts(targets)
        found = finder.best(parts, price)
        return np.array([_joined(target, parts, found, of_knob) for target in targets])

    start = time.perf_counter()
    finder = METHODS[method](searched, box, passes, seed, on_pass)
    wanted = list(zip(targets, settings(PRICE), strict=True))
    if front:
        wanted += [(targets[0], settings(price)[0]) for price in _PRICES]
        wanted.append((targets[0], np.zeros(len(box))))
    took = time.perf_counter() - start
    start, neutral, found = time.perf_counter(), Neutral(model), []
    for done, (target, strengths) in enumerate(wanted, start=1):
        found.append(_verified(target, strengths, verified, neutral))
        on_verified(done, len(wanted))
    seconds = {"search": took, "verification": time.perf_counter() - start}
    return Search(
        method, router is not None, len(records), searched.passes, seconds,
        found[: len(targets)], found if front else [],
    )  # fmt: skip


def _verified(target: Target, strengths: Array, scorer: Scorer, neutral: Neutral) -> Found:
    scores, domains = scorer(strengths), np.array(scorer.domains)
    rates = {
        domain: rates_of(scores[domains == domain], scorer.levels)
        for domain in sorted(set(scorer.domains))
    }

    def named(values: Array) -> Setting:
        rounded = (round(float(value), 4) + 0.0 for value in values)  # no negative zero
        return dict(zip(scorer.knobs, rounded, strict=True))

    acting = [named(strengths * applied) for applied in np.unique(scorer.applied, axis=0)]
    worst = max(map(neutral.effect, acting), key=lambda retained: retained.kl)
    return Found(dict(target), named(strengths), rates, worst)


def _parts(targets: Sequence[Target]) -> list[Target]:
    pairs = dict.fromkeys(pair for target in targets for pair in target.items())
    return [{domain: level} for domain, level in pairs]


def _joined(
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
    searched; of other data, which nothing is known about, all but the test part.

    Args:
        most: queries a domain to search on.
    """
    searched: list[Record] = []
    held_out: list[Record] = []
    count: Counter[str] = Counter()
    for record in records:
        split = split_of(record.id)
        if record.domain not in domains or (source == BUILTIN and split == "train"):
            continue
        if split == "test":
            held_out.append(record)
        elif most is None or count[record.domain] < most:
            count[record.domain] += 1
            searched.append(record)
    return searched, held_out


def _box(knobs: list[str], limits: Mapping[str, tuple[float, float]]) -> Any:
    for knob, (low, high) in limits.items():
        check_known("knob", knob, knobs)
        if not low < high:
            raise AlignvecError(f"knob '{knob}': nothing lies between {low:g} and {high:g}")
    return np.array([limits.get(knob, (-2.0, 2.0)) for knob in knobs], dtype=float)
