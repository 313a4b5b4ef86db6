"""The records of a study: their levels from low to high, their domains, and the parts of each."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from alignvec.base.seen import prompt_hash
from alignvec.data import Record, read_records
from alignvec.data.quality.expected import KNOWN_LEVELS, likely_levels
from alignvec.data.splits import SPLITS
from alignvec.errors import AlignvecError
from alignvec.reproduce.prompting import EXAMPLES

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[\w-][\w -]*")
_LEAST = {"train": EXAMPLES, "validation": 1, "test": 1}  # few-shot prompting shows some of train


@dataclass(frozen=True)
class Records:
    """What a study is made of.

    Attributes:
        levels: from low to high.
        whole: the records that have all of them.
        parts: domain -> split -> records, the domains in the order of the alphabet.
    """

    levels: list[str]
    whole: Sequence[Record]
    parts: Mapping[str, Mapping[str, Sequence[Record]]]

    @classmethod
    def read(
        cls, data: str, levels: Sequence[str] | None = None, own: Collection[str] = ()
    ) -> Records:
        """Records of a source, split by hash.

        Args:
            own: domains that a study has beside those of the data.
            levels: from low to high; by default those that the records seem to have.

        Raises:
            AlignvecError: the data cannot be read, its levels or their order cannot be told, there
                are fewer than two, a split of a domain has too few records, or a name is none for a
                file, or one of `own`.
        """
        every = list(read_records(data, levels or ()))
        names = list(levels or _levels_of(every, data))
        if len(set(names)) < 2:
            raise AlignvecError(
                f"a study wants two levels or more, from low to high, and {data} has "
                f"{', '.join(names) or 'none'}; name them with --levels"
            )
        whole = [one for one in every if set(names) <= set(one.levels)]
        if len(whole) < len(every):
            logger.warning(
                "%d records of %s have not all of the levels %s, and are left out",
                len(every) - len(whole), data, ", ".join(names),
            )  # fmt: skip
        domains = sorted({one.domain for one in whole})
        for name in (*names, *domains):
            if not _NAME.fullmatch(name):
                raise AlignvecError(
                    f"'{name}' cannot be the name of a file; a study wants levels and domains of "
                    "letters, digits, spaces and - _ alone"
                )
        for domain in set(own) & set(domains):
            raise AlignvecError(
                f"a study has a domain '{domain}' of its own, which is built in; give that of "
                f"{data} another name"
            )
        return cls(names, whole, _parts(whole, domains))


def _levels_of(records: Sequence[Record], data: str) -> Sequence[str]:
    """Those that the records seem to have: in the order that is known, else in that of the fields.

    Raises:
        AlignvecError: of names that are not known the records have different orders.
    """
    levels = likely_levels(records)
    known = levels in KNOWN_LEVELS
    orders = {tuple(name for name in one.levels if name in levels) for one in records}
    if not known and len({order for order in orders if len(order) == len(levels)}) > 1:
        raise AlignvecError(
            f"{data} has its levels {', '.join(levels)} in different orders; name them from low to "
            "high with --levels"
        )
    logger.log(
        logging.INFO if known else logging.WARNING,
        "the levels of %s, from low to high: %s%s", data, ", ".join(levels),
        "" if known else ", as its fields stand; if that is not their order, give --levels",
    )  # fmt: skip
    return levels


def _parts(records: Sequence[Record], domains: Sequence[str]) -> dict[str, dict[str, list[Record]]]:
    """Domain -> split -> records. What comes again in the test part is not trained on.

    Raises:
        AlignvecError: a part has too few.
    """
    kept_apart = {prompt_hash(one.prompt) for one in records if one.split == "test"}
    found: dict[str, dict[str, list[Record]]] = {
        domain: {split: [] for split in SPLITS} for domain in domains
    }
    for one in records:
        if one.split == "test" or prompt_hash(one.prompt) not in kept_apart:
            found[one.domain][one.split].append(one)
    for domain, parts in found.items():
        for split, some in parts.items():
            if len(some) < _LEAST[split]:
                raise AlignvecError(
                    f"domain '{domain}' has {len(some)} of at least {_LEAST[split]} records in the "
                    f"{split} part (70%, 10%, 20% by a hash of their ids); a study needs some "
                    "dozens of records a domain"
                )
    return found
