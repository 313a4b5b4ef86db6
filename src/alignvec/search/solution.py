"""Solutions: what a search gives, each with what it does on queries that it was not sought on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from alignvec.evaluate.rates import Rates
from alignvec.evaluate.retention import Retention
from alignvec.knobs.setting import Setting
from alignvec.search.target import Target, format_target

CLEAR = 0.6  # the stricter count asks for this rate


@dataclass(frozen=True)
class Solution:
    """A setting for a target, and what it does on held-out queries.

    Attributes:
        rates: domain -> preference rates there.
        retention: on neutral prose. With routing, under the knobs of the domain that is worst off.
    """

    target: Target
    setting: Setting
    rates: dict[str, Rates]
    retention: Retention | None = None

    @property
    def reached(self) -> bool:
        """Whether in every domain of the target the wanted level has the highest rate."""
        return all(
            rate[level] > max(other for name, other in rate.items() if name != level)
            for level, rate in self._wanted()
        )

    @property
    def reached_clearly(self) -> bool:
        """Whether it is reached with a rate of at least `CLEAR` in every domain."""
        return self.reached and all(rate[level] >= CLEAR for level, rate in self._wanted())

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
            return f"{format_target(self.target)}: {at}"
        domain, rate = self.least
        return (
            f"{format_target(self.target)} is not reachable; nearest is {at} "
            f"({domain}: {self.target[domain]} at {rate:.2f})"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "setting": self.setting,
            "rates": {domain: asdict(rates) for domain, rates in self.rates.items()},
            "retained": self.retention and asdict(self.retention),
            "reached": self.reached,
            "firmly": self.reached_clearly,
        }


@dataclass(frozen=True)
class SearchResult:
    """What a search found, and its cost.

    Attributes:
        passes: over the search queries, the cost in model evaluations; without verification.
        seconds: of the search, and of verification.
        front: of a single target, if asked for: settings that turn the knobs ever less, from what
            the target asks to the base.
        verified: how many other queries the rates are of.
        seen: how many of those were seen in training; None if that is not known.
    """

    method: str
    routed: bool
    queries: int
    passes: int
    seconds: dict[str, float]
    solutions: list[Solution]
    front: list[Solution] = field(default_factory=list)
    verified: int = 0
    seen: int | None = None

    @property
    def summary(self) -> str:
        """Its outcome and its cost in one line."""
        reached = sum(one.reached for one in self.solutions)
        clearly = sum(one.reached_clearly for one in self.solutions)
        return (
            f"{reached} of {len(self.solutions)} reached, {clearly} with rates of at least "
            f"{CLEAR}; "
            f"{self.passes} passes over {self.queries} queries, {self.seconds['search']:.0f} s"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "routed": self.routed,
            "queries": self.queries,
            "verified": {"queries": self.verified, "seen_in_training": self.seen},
            "passes": self.passes,
            "seconds": self.seconds,
            "found": [one.to_json() for one in self.solutions],
            "front": [one.to_json() for one in self.front],
        }
