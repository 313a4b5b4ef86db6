"""Preference rates and the text beside them: a table, and the figure of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from alignvec.base.seen import queries_told
from alignvec.evaluate.leak import Leak
from alignvec.evaluate.rates import Rates
from alignvec.evaluate.sweep import Sweep
from alignvec.evaluate.text import TextQuality
from alignvec.report.figure import MARKERS, colour_of, stacked

Answers = Mapping[str, TextQuality]  # greedy and sampled
_UNSOUND: Any = {"facecolor": "none", "edgecolor": "#B0B0B0", "hatch": "///", "linewidth": 0}


def rates_table(
    levels: Sequence[str], lines: Sequence[tuple[str, Rates]], queries: str | None = None
) -> Table:
    """A line a setting, each with what it is called; the highest rate in bold.

    Args:
        queries: how many, and whether training saw them.
    """
    told = queries or f"{lines[0][1].queries} queries"
    table = Table(title=f"preference rates, {told} (95% interval)")
    table.add_column("setting")
    for level in levels:
        table.add_column(level, justify="right")
    for setting, rates in lines:
        cells = [
            f"{rates.rate[level]:.2f} ({low:.2f}-{high:.2f})"
            for level in levels
            for low, high in [rates.interval[level]]
        ]
        styled = [
            _told(cell, level in rates.top) for level, cell in zip(levels, cells, strict=True)
        ]
        table.add_row(setting, *styled)
    return table


def text_table(lines: Sequence[tuple[str, Answers]], unsound: Mapping[int, str]) -> Table:
    """What the answers under each setting are like, greedy and sampled.

    Args:
        unsound: of the lines whose greedy answers are less sound than the base's, what makes them
            so: marked, in red.
    """
    answers = lines[0][1]["greedy"].answers
    table = Table(title=f"the text of {answers} answers, greedy / sampled")
    for name in ("setting", "repeated", "words", "numbers", "ended", "nats a token", "sound"):
        side: JustifyMethod = "left" if name == "setting" else "right"
        table.add_column(name, justify=side)
    table.caption = (
        "repeated: share of 4-grams; numbers: share of words; sound: greedy answers, against the "
        "base's"
    )
    for index, (setting, text) in enumerate(lines):
        both = [text[way] for way in ("greedy", "sampled")]
        why = unsound.get(index)
        style, mark = ("red", f"no: {why}") if why else (None, "yes")
        table.add_row(
            setting,
            " / ".join(f"{quality.repeated:.2f}" for quality in both),
            " / ".join(f"{quality.words:.0f}" for quality in both),
            " / ".join(f"{quality.numbers:.2f}" for quality in both),
            " / ".join(f"{quality.finished:.2f}" for quality in both),
            " / ".join("-" if q.likelihood is None else f"{q.likelihood:.2f}" for q in both),
            mark,
            style=style,
        )
    return table


def sweep_table(sweep: Sweep) -> Table:
    """A line a strength, and below them what each level reaches."""
    points = zip(sweep.strengths, sweep.rates, strict=True)
    queries = queries_told(sweep.rates[0].queries, sweep.seen)
    lines = [(f"{sweep.knob}={s:g}", rates) for s, rates in points]
    table = rates_table(sweep.levels, lines, queries)
    table.caption = "; ".join(
        f"{level}: at most {rate:.2f} (at {strength:g}), Spearman {sweep.spearman(level):.2f}"
        for level in sweep.levels
        for strength, rate in [sweep.best(level)]
    )
    return table


def sweep_text_table(sweep: Sweep) -> Table | None:
    """What is written at each strength; None if it was not asked for."""
    points = zip(sweep.strengths, sweep.text, strict=True)
    lines = [(f"{sweep.knob}={strength:g}", text) for strength, text in points if text]
    if not lines:
        return None
    return text_table(
        lines, {index: why for index in range(len(lines)) if (why := sweep.unsound(index))}
    )


def draw_sweep(sweep: Sweep, path: Path, title: str = "") -> None:
    """Rate against strength, a line and a 95% band per level (the paper's Figure 2).

    Below it, if answers were measured, how much of them is repeated; hatched where the greedy ones
    are less sound than the base's, for that or another reason (`sweep_text_table` says which).
    """
    with_text = sweep.base is not None
    with stacked(path, (3, 1) if with_text else (1,), height=5.2 if with_text else 4.2) as panels:
        axes = panels[0]
        if sweep.base is not None:
            for panel in panels:
                _hatch_unsound(sweep, panel)
            _draw_repetition(sweep, panels[1], sweep.base)
        for index, level in enumerate(sweep.levels):
            colour = colour_of(level, index)
            rate = [rates.rate[level] for rates in sweep.rates]
            low, high = zip(*(rates.interval[level] for rates in sweep.rates), strict=True)
            axes.fill_between(sweep.strengths, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(
                sweep.strengths,
                rate,
                color=colour,
                marker=MARKERS[index % len(MARKERS)],
                markersize=5,
                linewidth=2,
                label=level,
            )
        _mark(axes, 0, "base")
        if min(sweep.strengths) <= 1 <= max(sweep.strengths):
            _mark(axes, 1, "aligned")
        axes.set_ylim(-0.03, 1.03)
        panels[-1].set_xlabel(f"strength of the {sweep.knob} knob (lambda)")
        axes.set_ylabel("preference rate")
        if title:
            axes.set_title(title, loc="left", pad=22, fontsize=12)
        queries = queries_told(sweep.rates[0].queries, sweep.seen)
        axes.legend(frameon=False, title=f"{queries}, 95% bands", loc="center left")


def _draw_repetition(sweep: Sweep, axes: Axes, base: Answers) -> None:
    for way, style in (("greedy", "-"), ("sampled", "--")):
        values = [text[way].repeated if text else math.nan for text in sweep.text]
        axes.plot(sweep.strengths, values, color="#333333", linestyle=style, label=way)
    axes.axhline(base["greedy"].repeated, color="#999999", linewidth=1, linestyle=":")
    axes.set_ylim(0, 1)
    axes.set_ylabel("repeated\n4-grams")
    lines, names = axes.get_legend_handles_labels()
    if any(map(sweep.unsound, range(len(sweep.strengths)))):
        lines.append(Patch(**_UNSOUND))
        names.append("text less sound than the base's")
    axes.legend(lines, names, frameon=False, fontsize=9, loc="upper left", ncols=3)


def _hatch_unsound(sweep: Sweep, axes: Axes) -> None:
    """Hatched around each strength whose answers are less sound than the base's."""
    at = sweep.strengths
    for index, here in enumerate(at):
        if sweep.unsound(index):
            left = (at[max(0, index - 1)] + here) / 2
            right = (at[min(len(at) - 1, index + 1)] + here) / 2
            axes.axvspan(left, right, **_UNSOUND)


def _mark(axes: Axes, strength: float, name: str) -> None:
    axes.axvline(strength, color="#999999", linewidth=1, linestyle=":")
    axes.annotate(
        name, (strength, 1.03), xycoords=("data", "axes fraction"), ha="center", color="#666666",
        fontsize=10,
    )  # fmt: skip


def leak_table(leaks: Sequence[Leak], queries: str) -> Table:
    """A line a knob and level: how much the level's rate rises in each domain; its own in bold.

    Args:
        queries: how many, and whether training saw them.
    """
    domains = list(next(iter(leaks[0].effect.values())))
    table = Table(title=f"rise of a level's rate, one knob at a time, {queries}")
    for name in ("knob", "at", *domains, "normalised leak", "neutral text"):
        table.add_column(name, justify="left" if name in ("knob", "at") else "right")
    for leak in leaks:
        for level, rises in leak.effect.items():
            share = leak.normalised(level)
            table.add_row(
                leak.knob,
                level,
                *(_told(f"{rises[d]:+.2f}", d == leak.home) for d in domains),
                "-" if share is None else f"{share:.2f}",
                f"{leak.neutral[level]:.3f} nats",
            )
    return table


def _told(cell: str, bold: bool) -> Text:
    return Text(cell, "bold" if bold else "")
