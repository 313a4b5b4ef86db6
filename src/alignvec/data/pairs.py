"""From an order of levels to preference pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from alignvec.base.messages import Messages
from alignvec.data.records import Record
from alignvec.errors import AlignvecError


@dataclass(frozen=True)
class PreferencePair:
    """To `prompt`, `chosen` is preferred over `rejected`.

    Attributes:
        id: the record's, and the two levels.
        prompt: a question, or the conversation that is answered.
        strengths: of each knob, under which that is so. None of a plain pair: of the aligned model.
        broken: the rejected response is the chosen one, broken.
        hold: neither is preferred, both stay as likely as the base finds them under `strengths`.
        knob: that answers for the record, if one does.
    """

    id: str
    prompt: Messages
    chosen: str
    rejected: str
    strengths: tuple[float, ...] = ()
    hold: bool = False
    broken: bool = False
    knob: str = ""

    @property
    def record(self) -> str:
        """The id of the record that it is of."""
        return self.id.rpartition(":")[0]


def parse_order(text: str) -> list[str]:
    """`expert,generic,avoidance` as a list, the most preferred first.

    Raises:
        AlignvecError: fewer than two levels, or one twice.
    """
    order = [level.strip() for level in text.split(",")]
    if len(order) < 2 or "" in order or len(set(order)) < len(order):
        raise AlignvecError(
            f"'{text}' is no order of levels; name two or more, each once, with commas between"
        )
    return order


def preference_pairs(
    records: Iterable[Record], order: Sequence[str], all_pairs: bool = False
) -> Iterator[PreferencePair]:
    """The pairs of each record, next to each other.

    Args:
        order: levels, the most preferred first. `expert,generic,avoidance` gives expert>generic
            and generic>avoidance.
        all_pairs: also pairs of levels that are not neighbours (expert>avoidance).
    """
    for record in records:
        for better, worse in combinations(order, 2) if all_pairs else pairwise(order):
            yield PreferencePair(
                id=f"{record.id}:{better}>{worse}",
                prompt=record.prompt,
                chosen=record.levels[better],
                rejected=record.levels[worse],
            )
