"""Rates against the strength of a knob: likelihood solid, judged dashed, a 95% band each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alignvec.report.figure import MARKERS
from alignvec.report.study.document import Panel, Share
from alignvec.report.study.svg import legend, named

STYLES = {"likelihood": "-", "judged": "--"}
Line = tuple[str, str, str, list[tuple[float, Share]]]  # name, measure, colour, points


def rate_panel(
    title: str, lines: Sequence[Line], x: str = "strength of the knob (lambda)", y: str = "rate"
) -> Panel:
    """Lines of shares; those of one name share colour and marker."""
    names = list(dict.fromkeys(name for name, *_ in lines))
    rows = -(-len({(name, measure) for name, measure, *_ in lines}) // 2)
    return Panel(title, partial(_draw, list(lines), names, x, y), height=3.0 + 0.2 * rows)


def _draw(lines: Sequence[Line], names: Sequence[str], x: str, y: str, drawn: Figure) -> None:
    axes = drawn.subplots()
    for name, measure, colour, points in lines:
        if not points:
            continue
        at = [strength for strength, _ in points]
        solid = STYLES[measure] == "-"
        low, high = [one.low for _, one in points], [one.high for _, one in points]
        axes.fill_between(at, low, high, color=colour, alpha=0.16 if solid else 0.08, linewidth=0)
        axes.plot(
            at, [one.value for _, one in points], color=colour, linestyle=STYLES[measure],
            linewidth=1.9, marker=MARKERS[names.index(name) % len(MARKERS)], markersize=4.5,
            markerfacecolor=colour if solid else "none", label=f"{named(name)}, {measure}",
        )  # fmt: skip
    finish(axes, x, y)
    axes.set_ylim(-0.03, 1.03)
    legend(axes)


def finish(axes: Axes, x: str, y: str) -> None:
    """Labels, and a line at the base."""
    low, high = axes.get_xlim()
    if low <= 0 <= high and "lambda" in x:
        axes.axvline(0, color="#999999", linewidth=1, linestyle=":")
    if "lambda" not in x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
