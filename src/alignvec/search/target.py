"""Targets: domain -> level, the behaviour that is wanted (the paper's 27 for three domains)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from itertools import product

from alignvec.errors import AlignvecError

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
    target: Target = {}
    for part in text.split(","):
        domain, equals, level = (piece.strip() for piece in part.partition("="))
        if not (domain and equals and level):
            raise AlignvecError(
                f"'{part.strip()}' is no target; write DOMAIN=LEVEL, as in medical=expert"
            )
        if domain in target:
            raise AlignvecError(f"domain '{domain}' is named twice in '{text}'")
        _check_known("domain", domain, domains)
        _check_known("level", level, levels)
        target[domain] = level
    return target


def behaviours(domains: Sequence[str], levels: Sequence[str]) -> Iterator[Target]:
    """Every domain at every level: levels ** domains targets."""
    for choice in product(levels, repeat=len(domains)):
        yield dict(zip(domains, choice, strict=True))


def written(target: Target) -> str:
    return ",".join(f"{domain}={level}" for domain, level in target.items())


def _check_known(kind: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"the data has {', '.join(known)}"
        raise AlignvecError(f"unknown {kind} '{name}'; {hint}")
