"""What a record repeats: of itself, or of the records before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

from alignvec.base.messages import as_text
from alignvec.data.duplicates import ALIKE, NearDuplicates, similarity
from alignvec.data.records import Record


class Repeats:
    """Takes records one by one. Texts of all kinds are compared with each other."""

    def __init__(self, each: int) -> None:
        """Args: each: a persona may come so often; further records of it are repeats."""
        self._each = each
        self._records: list[Record] = []
        self._ids: set[str] = set()
        self._people = Counter[str]()
        self._texts = NearDuplicates()

    def of(self, record: Record, levels: Sequence[str]) -> Iterator[tuple[str, str]]:
        """(rule, reason) of everything that the record repeats."""
        if record.id in self._ids:
            yield "duplicate", f"id '{record.id}' comes twice"
        texts = _texts(record, levels)
        for (one, text), (another, other) in combinations(texts.items(), 2):
            share = similarity(text, other)
            if share >= ALIKE:
                yield _rule(share), f"'{one}' and '{another}' share {share:.0%} of their words"
        for field, text in texts.items():
            if field == "persona" and text in self._people:
                if self._people[text] >= self._each:
                    yield "duplicate", f"'persona' already comes {self._people[text]} times"
            elif found := self._texts.near(text):
                (number, theirs), share = found
                other_record = self._records[number]
                ours, split = record.split, other_record.split
                leaks = ours != split and "persona" not in (field, theirs)
                yield (
                    "leakage" if leaks else _rule(share),
                    f"'{field}' ({ours}) shares {share:.0%} of its words with '{theirs}' of "
                    f"'{other_record.id}' ({split})",
                )

    def add(self, record: Record, levels: Sequence[str]) -> None:
        """A record that the later ones are compared with."""
        for field, text in _texts(record, levels).items():
            if field != "persona" or text not in self._people:
                self._texts.add((len(self._records), field), text)
        self._records.append(record)
        self._ids.add(record.id)
        self._people[record.persona] += 1


def _texts(record: Record, levels: Sequence[str]) -> dict[str, str]:
    texts = {"persona": record.persona, "query": as_text(record.prompt)}
    texts |= {level: record.levels[level] for level in levels}
    return {field: text for field, text in texts.items() if text.strip()}


def _rule(share: float) -> str:
    return "duplicate" if share == 1 else "near_duplicate"
