"""Targets: domain -> level, the behaviour that is wanted (the paper's 27 for three domains)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import product

from alignvec.errors import check_known
from alignvec.knobs.setting import parse_pairs

Target = dict[str, str]


def parse_target(text: str, domains: Collection[str], levels: Collection[str]) -> Target:
    """`medical=expert,legal=avoidance` as a mapping. A domain that is not named may do anything.

    Args:
        domains: those with queries to measure on.
        levels: those of the records.

    Raises:
        AlignvecError: it is not of that form, names a domain twice, or one without data, or an
            unknown level.
    """
    target = parse_pairs(text, "target", "DOMAIN=LEVEL, as in medical=expert")
    for domain, level in target.items():
        check_known("domain", domain, domains)
        check_known("level", level, levels)
    return target


def behaviours(domains: Sequence[str], levels: Sequence[str]) -> Iterator[Target]:
    """Every domain at every level: levels ** domains targets."""
    for choice in product(levels, repeat=len(domains)):
        yield dict(zip(domains, choice, strict=True))


def format_target(target: Target) -> str:
    return ",".join(f"{domain}={level}" for domain, level in target.items())
