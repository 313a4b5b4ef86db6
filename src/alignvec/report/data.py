"""Records in numbers: statistics, what cleaning rejects, how far annotators agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from alignvec.data.quality.rules import RULES
from alignvec.errors import printable
from alignvec.report.figure import colour_of, figure


def rejected_table(counts: Mapping[str, int]) -> Table:
    """How many records each rule of `data clean` rejected."""
    table = Table("rule", "what it asks for")
    table.add_column("rejected", justify="right")
    for rule, count in counts.items():
        table.add_row(rule, RULES[rule].about, str(count))
    return table


def statistics_table(found: Mapping[str, Any]) -> Table:
    """A line a kind of text, as `statistics` found them."""
    domains = ", ".join(f"{name} {one['records']}" for name, one in found["domains"].items())
    domains = printable(domains)
    table = Table("", title=Text(f"{found['records']} records: {domains}"))
    for column in ("words", "sd", "5% to 95%", "distinct-2", "commonest opening", "grade"):
        table.add_column(column, justify="right")
    for kind, one in {"query": found["queries"], **found["levels"]}.items():
        words = one["words"]
        grade = one["readability_grade"]["mean"]
        opening = f"{one['commonest_opening']} ({one['commonest_opening_share']:.1%})"
        table.add_row(
            Text(kind), f"{words['mean']:.1f}", f"{words['sd']:.1f}",
            f"{words['p5']:.0f} to {words['p95']:.0f}", f"{one['distinct_2']:.2f}", Text(opening),
            "-" if grade is None else f"{grade:.1f}",
        )  # fmt: skip
    return table


def agreement_table(found: Mapping[str, Any]) -> Table:
    """Annotators two by two, and each with the intended levels."""
    pairs = [(", ".join(pair["annotators"]), pair) for pair in found["pairs"]]
    if intended := found["with_intended"]:
        pairs += [(f"{name}, intended", one) for name, one in intended["annotators"].items()]
        pairs.append(("majority, intended", intended["majority"]))
    table = Table("", "items", "raw", title="two by two (95% intervals)")
    table.add_column("Cohen's kappa", no_wrap=True)
    for weights in ("linear", "quadratic"):
        table.add_column(weights)
    for name, pair in pairs:
        cells = _value(pair["raw"]), _measure(pair["kappa"]), _value(pair["linear"])
        table.add_row(Text(name), str(pair["raw"]["items"]), *cells, _value(pair["quadratic"]))
    return table


def agreement_summary(found: Mapping[str, Any]) -> str:
    """All annotators together, in two lines."""
    together = found["together"]
    return (
        f"all together: raw {_measure(together['raw'])}, Fleiss' kappa "
        f"{_measure(together['fleiss'])}\nKrippendorff's alpha: nominal "
        f"{_measure(together['alpha'])}, ordinal {_measure(together['alpha_ordinal'])}"
    )


def _value(measure: Mapping[str, Any]) -> str:
    return "-" if measure["value"] is None else f"{measure['value']:.2f}"


def _measure(measure: Mapping[str, Any]) -> str:
    low, high = measure["interval"] or (None, None)
    return _value(measure) + (f" ({low:.2f} to {high:.2f})" if measure["interval"] else "")


def draw_confusion(confusion: Mapping[str, Mapping[str, int]], path: Path) -> None:
    """A row an intended level, a column a chosen one: answers, shaded by their share of the row."""
    levels = list(confusion)
    counts = np.array([[confusion[row][column] for column in levels] for row in levels])
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with figure(path, 2.2 + 1.1 * len(levels), 1.6 + 0.8 * len(levels)) as axes:
        axes.grid(visible=False)
        axes.imshow(share, aspect="auto", cmap="Blues", vmin=0, vmax=1)
        for (y, x), part in np.ndenumerate(share):
            colour = "white" if part > 0.6 else "black"
            text = f"{counts[y, x]}\n{part:.0%}"
            axes.text(x, y, text, ha="center", va="center", color=colour)
        axes.set_xticks(range(len(levels)), levels)
        axes.set_yticks(range(len(levels)), levels)
        axes.set_xlabel("chosen level")
        axes.set_ylabel("intended level")
        axes.set_title(f"{counts.sum()} answers", loc="left", fontsize=12)


def draw_lengths(levels: Mapping[str, Any], path: Path) -> None:
    """Share of each level's responses by their number of words."""
    with figure(path, height=3.6) as axes:
        for index, (level, found) in enumerate(levels.items()):
            colour = colour_of(level, index)
            counts = {int(words): count for words, count in found["words"]["counts"].items()}
            words = range(min(counts) - 1, max(counts) + 2)
            share = [counts.get(number, 0) / found["texts"] for number in words]
            axes.fill_between(words, share, step="mid", color=colour, alpha=0.12, linewidth=0)
            axes.step(words, share, where="mid", color=colour, linewidth=2, label=level)
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("words")
        axes.set_ylabel("share of the responses")
        axes.legend(frameon=False)
