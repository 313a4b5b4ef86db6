"""Cleaning: every record is judged by every rule; a rejected one is kept apart with its reasons."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignvec.data.quality.expected import Expected, expected_of
from alignvec.data.quality.level_order import judge_levels
from alignvec.data.quality.lines import Line, read_lines
from alignvec.data.quality.repeats import Repeats
from alignvec.data.quality.rules import RULES, can_tell_refusals
from alignvec.data.records import Record
from alignvec.data.spectrum import Spectrum
from alignvec.errors import check_known
from alignvec.files import atomic_file
from alignvec.progress import Bar, progress

_SPLIT_PRIORITY = ("test", "validation", "train")  # of two alike in two splits


@dataclass
class Cleaned:
    """What became of the lines.

    Attributes:
        levels: of each domain.
        others: of each domain the other fields with text; they are kept and not judged.
        not_checked: of each domain the rules that could not be applied, and why.
        in_order: of each domain the share of neighbouring levels that read in their order.
    """

    lines: list[Line]
    levels: dict[str, list[str]] = field(default_factory=dict)
    others: dict[str, list[str]] = field(default_factory=dict)
    not_checked: dict[str, dict[str, str]] = field(default_factory=dict)
    in_order: dict[str, float | None] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        counts = Counter(line.faults[0][0] for line in self.lines if line.faults)
        return {
            "read": len(self.lines),
            "kept": len(self.lines) - counts.total(),
            "rejected": {rule: counts[rule] for rule in RULES},
            "levels": self.levels,
            "others": self.others,
            "not_checked": self.not_checked,
            "levels_in_order": self.in_order,
        }

    def write(self, out: Path, overwrite: bool = False) -> None:
        """What is kept, as it came; beside it what is rejected (`rejected_path`)."""
        rejections = (_rejection(line) for line in self.lines if line.faults)
        kept = (line.text for line in self.lines if not line.faults)
        for path, lines in ((rejected_path(out), rejections), (out, kept)):
            with (
                atomic_file(path, overwrite) as partial,
                # half of a surrogate pair is written as JSON escapes it
                partial.open("w", encoding="utf-8", errors="backslashreplace") as file,
            ):
                file.writelines(f"{line}\n" for line in lines)


def rejected_path(out: Path) -> Path:
    """`clean.rejected.jsonl` for `clean.jsonl`."""
    return out.with_name(f"{out.stem}.rejected.jsonl")


def _rejection(line: Line) -> str:
    (rule, reason), *others = line.faults
    try:
        record = json.loads(line.text)
    except (ValueError, RecursionError):
        record = line.text
    content = {
        "line": line.place,
        "rule": rule,
        "reason": reason,
        "also": [{"rule": rule, "reason": reason} for rule, reason in others],
        "record": record,
    }
    return json.dumps(content, ensure_ascii=False)


def clean(
    source: str | Path,
    spectra: Sequence[Spectrum] = (),
    levels: Sequence[str] = (),
    skip: Collection[str] = (),
) -> Cleaned:
    """Judge every line of a source. A rule for the whole set sees only what passed those before.

    Args:
        source: as `read_records` takes it.
        spectra, levels: see `expected_of`.
        skip: rules to leave out; any but `schema`.

    Raises:
        AlignvecError: the source cannot be read or has no record, a rule is unknown, or a spectrum
            fits no domain.
    """
    for name in skip:
        check_known("rule to skip", name, [rule for rule in RULES if rule != "schema"])
    lines = read_lines(source)
    records = [line.record for line in lines if line.record]
    expected = expected_of(records, spectra, levels)
    with progress("cleaning", "record", 2 * len(records)) as bar:
        for line, record in _faultless(lines):
            line.faults += _faults(record, expected[record.domain], skip)
            bar.update()
        _find_repeats(lines, expected, skip, bar)
    cleaned = Cleaned(lines, {domain: list(one.levels) for domain, one in expected.items()})
    for domain, names in cleaned.levels.items():
        found = (name for one in records if one.domain == domain for name in one.levels)
        if others := [name for name in dict.fromkeys(found) if name not in names]:
            cleaned.others[domain] = others
    groups = defaultdict[str, list[tuple[Line, Record]]](list)
    for line, record in _faultless(lines):
        groups[record.domain].append((line, record))
    for domain, group in groups.items():
        about = expected[domain]
        judged = judge_levels([record for _, record in group], about)
        for (line, _), faults in zip(group, judged.faults, strict=True):
            line.faults += [fault for fault in faults if fault[0] not in skip]
        cleaned.in_order[domain] = judged.in_order
        cleaned.not_checked[domain] = {
            rule: why
            for rule, why in {**_inapplicable(about), **judged.not_checked}.items()
            if rule not in skip
        }
    return cleaned


def _find_repeats(
    lines: Sequence[Line],
    expected: Mapping[str, Expected],
    skip: Collection[str],
    bar: Bar,
) -> None:
    """Of two records alike in two splits the one in train is rejected, else the later one."""
    repeats = Repeats(_usual_count(line.record.persona for line in lines if line.record))
    good = sorted(_faultless(lines), key=lambda one: _SPLIT_PRIORITY.index(one[1].split))
    for line, record in good:
        names = expected[record.domain].levels
        line.faults += [fault for fault in repeats.of(record, names) if fault[0] not in skip]
        if not line.faults:
            repeats.add(record, names)
        bar.update()


def _faultless(lines: Iterable[Line]) -> list[tuple[Line, Record]]:
    return [(line, line.record) for line in lines if line.record and not line.faults]


def _faults(record: Record, expected: Expected, skip: Collection[str]) -> Iterator[tuple[str, str]]:
    for name, rule in RULES.items():
        if rule.check and name not in skip and (reason := rule.check(record, expected)):
            yield name, reason
            if name == "schema":
                return


def _usual_count(personas: Iterable[str]) -> int:
    """How many records a persona has, most often: people may be asked several queries each."""
    counts = Counter(Counter(persona for persona in personas if persona).values())
    return max(counts, key=lambda each: (counts[each], -each), default=1)


def _inapplicable(expected: Expected) -> dict[str, str]:
    """Rules that need to know more of a domain, and why they cannot be applied."""
    reasons = {}
    if expected.spectrum is None:
        reasons["length"] = "no spectrum"
    if expected.language is None:
        reasons["language"] = "the records are short, or in several languages"
    if not can_tell_refusals(expected):
        reasons["refusal"] = "no spectrum" if expected.spectrum is None else "not English"
    return reasons
