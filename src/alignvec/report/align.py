"""How a training went, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from alignvec.base.seen import queries_told
from alignvec.evaluate.check import LevelCheck
from alignvec.evaluate.text import unsound
from alignvec.report.evaluate import rates_table, text_table
from alignvec.report.figure import figure


def draw_training(record: Mapping[str, Any], path: Path) -> None:
    """Loss and reward margin of every training step."""
    steps = [entry["step"] for entry in record["curve"]]
    with figure(path, height=3.6) as axes:
        axes.plot(steps, [e["loss"] for e in record["curve"]], color="#D55E00", marker="o", ms=4)
        axes.set_xlabel("step")
        axes.set_ylabel(f"{record['settings']['loss']} loss", color="#D55E00")
        axes.set_ylim(bottom=0)
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
        right.plot(steps, [e["margin"] for e in record["curve"]], color="#0072B2", marker="s", ms=4)
        right.set_ylabel("reward margin (chosen minus rejected)", color="#0072B2")
        axes.set_title(
            f"{record['pairs']} pairs on {record['base']}, {record['settings']['method']}",
            loc="left",
            fontsize=12,
        )


def check_tables(knob: str, checks: Sequence[LevelCheck]) -> tuple[Table, Table]:
    """Rates and text, a line for the base and for each level, in the order of strength."""
    ordered = sorted(checks, key=lambda check: check.strength)
    names = [f"{check.level} ({check.strength:g})" if check.level else "base" for check in ordered]
    (base,) = (check.text["greedy"] for check in ordered if check.level is None)
    why = [unsound(check.text["greedy"], base, check.references) for check in ordered]
    rates = zip(names, (check.rates for check in ordered), strict=True)
    text = zip(names, (check.text for check in ordered), strict=True)
    tables = (
        rates_table(
            [check.level for check in ordered if check.level],
            list(rates),
            queries_told(checks[0].rates.queries, checks[0].seen),
        ),
        text_table(list(text), {index: one for index, one in enumerate(why) if one}),
    )
    for table in tables:
        table.title = f"{knob}: {table.title}"
    return tables


def broken(knob: str, check: LevelCheck, base: LevelCheck) -> str:
    """A level whose answers are less sound than the base's, in a line."""
    at, before = check.text["greedy"], base.text["greedy"]
    return (
        f"knob '{knob}' at {check.strength:g} ({check.level}): the text suffers: "
        f"{at.repeated:.2f} of 4-grams repeated (base {before.repeated:.2f}), "
        f"{at.words:.0f} words (base {before.words:.0f}), {at.numbers:.2f} of them with a digit "
        f"(base {before.numbers:.2f}); the safe range leaves it out"
    )
