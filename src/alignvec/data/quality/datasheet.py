"""The data sheet of a set of records: what is known of it, and its numbers."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from alignvec.data.sources import BUILTIN
from alignvec.errors import AlignvecError

_UNKNOWN = """# Data sheet: {name}

**What it is.** {records} records, each a query with a response at the levels {levels}.

**Where it comes from.** Not stated.

**Who checked it.** Not stated. Where nobody did, a level is what its writer was asked for.

**What it is for.** Not stated.

**Known limits.** Not stated; see the numbers below.

**Licence.** Not stated."""


def about_text(source: str, about: Path | None) -> str | None:
    """What people say of a source: a file of theirs, or the built-in set's own data sheet.

    Raises:
        AlignvecError: the file cannot be read.
    """
    if about is None and source == BUILTIN:
        about = Path(str(resources.files("alignvec.data"))) / "builtin" / "DATASHEET.md"
    try:
        return about.read_text("utf-8") if about else None
    except (OSError, UnicodeDecodeError) as error:
        raise AlignvecError(f"{about} cannot be read as text: {error}") from None


def datasheet(name: str, stats: dict[str, Any], about: str | None = None) -> str:
    """In Markdown. Without `about` it says "not stated" where only people know."""
    levels = stats["levels"]
    said = about or _UNKNOWN.format(name=name, records=stats["records"], levels=", ".join(levels))
    domains = _table(
        ("domain", "records", *stats["splits"], "personas", "topics", "evenness", "language"),
        (
            (
                domain, one["records"], *one["splits"].values(), one["personas"],
                one["topics"]["distinct"], one["topics"]["evenness"], one["language"],
            )
            for domain, one in stats["domains"].items()
        ),
    )  # fmt: skip
    kinds = {"query": stats["queries"], **levels}
    lengths = _table(
        ("words", "mean", "sd", "least", "5%", "median", "95%", "most"),
        (
            (kind, *(one["words"][key] for key in ("mean", "sd", "min", "p5", "p50", "p95", "max")))
            for kind, one in kinds.items()
        ),
    )
    style = _table(
        ("texts", "distinct-1", "distinct-2", "commonest opening", "share", "nearest", "grade"),
        (
            (
                kind, one["distinct_1"], one["distinct_2"], one["commonest_opening"],
                f"{one['commonest_opening_share']:.1%}", one["nearest_similarity"],
                one["readability_grade"]["mean"],
            )
            for kind, one in kinds.items()
        ),
    )  # fmt: skip
    checks = "\n".join(f"- {length_line(check)}" for check in stats["length_check"])
    left_out = stats["left_out"]
    return f"""{said.strip()}

## In numbers

{stats["records"]} records{f"; {left_out} lines without one are left out" if left_out else ""}.

{domains}

Evenness of the topics is their entropy over that of as many equally frequent ones. The split is a
hash of the id.

{lengths}

Does the length give the level away? A small decision tree sees the number of words and nothing
else, and guesses the levels of records that it was not fitted to. From half of the way between
chance and always right on, the length gives the level away; from a tenth on, it hints at it.

{checks}

{style}

Distinct-1 and distinct-2 are the shares of different words and pairs of words; they fall as a set
grows. Openings are three words. Nearest is the mean cosine (TF-IDF of words) of a text and the one
most like it. Grade is the automated readability index, in years of school; made for English.
"""


def length_line(check: dict[str, Any]) -> str:
    """The verdict of the length check, with its numbers."""
    if check["accuracy"] is None:
        return f"{', '.join(check['levels'])}: {check['verdict']}"
    return (
        f"{', '.join(check['levels'])}: {check['verdict']} ({check['accuracy']:.0%} right from the "
        f"number of words alone; by chance {check['chance']:.0%})"
    )


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value).replace("|", "\\|")
