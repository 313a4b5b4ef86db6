"""Preference rates: a table, and the figure of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from rich.table import Table

from alignvec.evaluate.rates import Rates
from alignvec.evaluate.sweep import Sweep
from alignvec.report.figure import MARKERS, colour_of, figure


def rates_table(levels: Sequence[str], lines: Sequence[tuple[str, Rates]]) -> Table:
    """A line a setting, each with what it is called; the highest rate in bold."""
    table = Table(title=f"preference rates, {lines[0][1].queries} queries (95% interval)")
    table.add_column("setting")
    for level in levels:
        table.add_column(level, justify="right")
    for setting, rates in lines:
        top = max(rates.rate, key=rates.rate.__getitem__)
        cells = [
            f"{rates.rate[level]:.2f} ({low:.2f}-{high:.2f})"
            for level in levels
            for low, high in [rates.interval[level]]
        ]
        styled = [
            f"[bold]{cell}[/bold]" if level == top else cell
            for level, cell in zip(levels, cells, strict=True)
        ]
        table.add_row(setting, *styled)
    return table


def sweep_table(sweep: Sweep) -> Table:
    """A line a strength, and below them what each level reaches."""
    points = zip(sweep.strengths, sweep.rates, strict=True)
    table = rates_table(sweep.levels, [(f"{sweep.knob}={s:g}", rates) for s, rates in points])
    table.caption = "; ".join(
        f"{level}: at most {rate:.2f} (at {strength:g}), Spearman {sweep.spearman(level):.2f}"
        for level in sweep.levels
        for strength, rate in [sweep.best(level)]
    )
    return table


def draw_sweep(sweep: Sweep, path: Path, title: str = "") -> None:
    """Rate against strength, a line and a 95% band per level (the paper's Figure 2)."""
    with figure(path) as axes:
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
        axes.set_xlabel(f"strength of the {sweep.knob} knob (lambda)")
        axes.set_ylabel("preference rate")
        if title:
            axes.set_title(title, loc="left", pad=22, fontsize=12)
        queries = sweep.rates[0].queries
        axes.legend(frameon=False, title=f"{queries} queries, 95% bands", loc="center left")


def _mark(axes: Axes, strength: float, name: str) -> None:
    axes.axvline(strength, color="#999999", linewidth=1, linestyle=":")
    axes.annotate(
        name, (strength, 1.03), xycoords=("data", "axes fraction"), ha="center", color="#666666",
        fontsize=10,
    )  # fmt: skip
