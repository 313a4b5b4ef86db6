"""A panel as SVG: as a file it has white behind it, within a page it takes the page's colours."""

from __future__ import annotations

import io
import re

from matplotlib.axes import Axes

from alignvec.errors import printable
from alignvec.report.figure import COLOURS, canvas
from alignvec.report.study.document import Panel

INK, GRID = "#1a1a1a", "#e0e0e0"  # of the page where it is light
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it is found, read aloud, and any script is drawn
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
}
# As the page has them, which may be dark.
_OF_PAGE = {INK: "currentColor", GRID: "var(--line)", COLOURS[0].lower(): "var(--blue)"}
_COLOUR = re.compile(rf"\b(fill|stroke): ({'|'.join(_OF_PAGE)})\b")
_ID = re.compile(r'(\bid="|href="#|url\(#)')
_OPENING = re.compile(r"<svg\b[^>]*>")
_SIZE = re.compile(r' width="[\d.]+pt"| height="[\d.]+pt"')
_WHITE = '<rect width="100%" height="100%" fill="white"/>'
_NO_SPACE = "\u200b"
_LONGEST = 28  # characters of a name in a figure


def svg(panel: Panel, name: str) -> str:
    """Draw a panel, as a file of its own, on white.

    Args:
        name: of letters, digits and hyphens; its ids begin with it, so that many stand on a page.
    """
    with canvas(panel.width, panel.height, **_STYLE) as drawn:
        panel.draw(drawn)
        out = io.StringIO()
        about = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawn.savefig(out, format="svg", metadata=about, transparent=True)
    text = _ID.sub(rf"\g<1>{name}-", out.getvalue())
    return _OPENING.sub(lambda found: found[0] + _WHITE, text, count=1)


def for_page(text: str) -> str:
    """A drawing within a page: as wide as there is room, in the page's colours."""
    text = text[text.index("<svg") :].replace(_WHITE, "", 1)
    text = _SIZE.sub("", text, count=2).replace("<svg", '<svg role="img"', 1)
    return _COLOUR.sub(lambda found: f"{found[1]}: {_OF_PAGE[found[2]]}", text)


def named(text: str, most: int = _LONGEST) -> str:
    """A name as a figure shows it: one line, not too long."""
    shown = printable(text)
    shown = shown if len(shown) <= most else shown[: most - 1] + "…"
    # What begins with _ matplotlib leaves out of a legend.
    return f"{_NO_SPACE}{shown}" if shown.startswith("_") else shown


def legend(axes: Axes, columns: int = 2) -> None:
    """What the lines are, above the axes, where they cannot hide a line."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.figure.legend(
            handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9,
            handlelength=2.2, columnspacing=1.2,
        )  # fmt: skip
