"""From what was found, with its interval, to what becomes of a claim; over all domains, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alignvec.report.study.document import Share, Verdict
from alignvec.report.study.others import TRUSTED

_WORST_FIRST = (Verdict.FAILS, Verdict.OPEN, Verdict.HOLDS)


def above_zero(rise: Share) -> Verdict:
    """Whether a difference is above 0, at both ends of its interval."""
    if rise.low > 0:
        return Verdict.HOLDS
    return Verdict.OPEN if rise.high > 0 else Verdict.FAILS


def at_least(found: Share, figure: float) -> Verdict:
    """Whether a share is no less than a figure, at both ends of its interval."""
    if found.low >= figure:
        return Verdict.HOLDS
    return Verdict.OPEN if found.high >= figure else Verdict.FAILS


def in_every(
    verdicts: Mapping[str, Verdict], domains: Sequence[str], partly: Sequence[str] = ()
) -> tuple[Verdict, list[str]]:
    """The worst verdict of all domains, and what has no numbers, in which nothing can hold.

    Args:
        partly: the domains with verdicts some of whose results are missing.
    """
    worst = next(one for one in _WORST_FIRST if one in verdicts.values())
    missing = [domain for domain in domains if domain not in verdicts or domain in partly]
    if missing and worst is Verdict.HOLDS:
        worst = Verdict.OPEN
    return worst, [f"not all is measured in {', '.join(missing)}"] if missing else []


def deciding(verdicts: Mapping[str, Verdict], rises: Mapping[str, Share]) -> str:
    """The domain in which it is furthest from holding."""
    return min(rises, key=lambda one: (_WORST_FIRST.index(verdicts[one]), rises[one].low))


def doubt(by: str, judge: Share | None) -> list[str]:
    """That a judge is often wrong, where one has judged."""
    if by != "judged" or judge is None or judge.value >= TRUSTED:
        return []
    return [f"the judge is right on {judge.value:.2f} of held-out references"]
