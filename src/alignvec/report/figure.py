"""One style for all figures: PNG and SVG, readable in print and by colour-blind eyes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alignvec.files import atomic_file

# Okabe and Ito's palette; a level beyond these takes the next.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
_LEVELS = {"avoidance": "#D55E00", "generic": "#767676", "expert": "#0072B2"}
_PIXELS = 30_000  # on a side at most; matplotlib draws no 65,536


def colour_of(level: str, index: int = 0) -> str:
    """The colour of a level; of one that is not known, that of its place."""
    return _LEVELS.get(level, COLOURS[index % len(COLOURS)])


def figure_files(path: Path) -> list[Path]:
    """The files of the figure `path`; a name may have dots."""
    return [path.with_name(f"{path.name}.{form}") for form in ("png", "svg")]


@contextmanager
def figure(path: Path, width: float = 7.0, height: float = 4.2) -> Iterator[Axes]:
    """Yield axes to draw on, then write `path`.png and `path`.svg."""
    with stacked(path, (1.0,), width, height) as (axes,):
        yield axes


@contextmanager
def stacked(
    path: Path, heights: Sequence[float], width: float = 7.0, height: float = 4.2
) -> Iterator[list[Axes]]:
    """Yield axes one above the other that share their x, then write `path`.png and `path`.svg."""
    with canvas(width, height) as drawn:
        axes = drawn.subplots(len(heights), sharex=True, squeeze=False, height_ratios=list(heights))
        yield list(axes[:, 0])
        dpi = min(160.0, _PIXELS / max(width, height))
        for file in figure_files(path):
            form = file.suffix[1:]
            metadata = {"Date": None} if form == "svg" else None
            with atomic_file(file, overwrite=True) as partial:
                drawn.savefig(partial, dpi=dpi, metadata=metadata, format=form)


@contextmanager
def canvas(width: float, height: float, **more: Any) -> Iterator[Figure]:
    """Yield an empty figure, in inches, in the style of all; what is done in the block has it.

    Args:
        more: settings of matplotlib, beside the style's.
    """
    style: Any = {
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#E6E6E6",
        "axes.axisbelow": True,
        "text.parse_math": False,  # a dollar sign in a name is one
        "svg.hashsalt": "alignvec",  # the same figure is the same file
    }
    with rc_context(style | more):
        yield FigureCanvasAgg(Figure(figsize=(width, height), layout="constrained")).figure
