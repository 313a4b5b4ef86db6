"""Figures, each as PNG and SVG, readable in print and by colour-blind eyes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from alignvec.evaluate import Sweep
    from alignvec.search import Search

# Okabe and Ito's palette; a level beyond these takes the next.
_COLOURS = {"avoidance": "#D55E00", "generic": "#767676", "expert": "#0072B2"}
_OTHERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vP"
_PIXELS = 30_000  # on a side at most; matplotlib draws no 65,536


@contextmanager
def figure(path: Path, width: float = 7.0, height: float = 4.2) -> Iterator[Axes]:
    """Yield axes to draw on, then write `path`.png and `path`.svg."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
    dpi = min(160.0, _PIXELS / max(width, height))
    with rc_context(style):
        canvas = FigureCanvasAgg(Figure(figsize=(width, height), layout="constrained"))
        yield canvas.figure.subplots()
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("png", "svg"):
            metadata = {"Date": None} if suffix == "svg" else None
            canvas.figure.savefig(path.with_suffix(f".{suffix}"), dpi=dpi, metadata=metadata)


def draw_sweep(sweep: Sweep, path: Path, title: str = "") -> None:
    """Rate against strength, a line and a 95% band per level (the paper's Figure 2)."""
    with figure(path) as axes:
        for index, level in enumerate(sweep.levels):
            colour = _COLOURS.get(level, _OTHERS[index % len(_OTHERS)])
            rate = [rates.rate[level] for rates in sweep.rates]
            low, high = zip(*(rates.interval[level] for rates in sweep.rates), strict=True)
            axes.fill_between(sweep.strengths, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(
                sweep.strengths,
                rate,
                color=colour,
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=5,
                linewidth=2,
                label=level,
            )
        axes.axvline(0, color="#999999", linewidth=1, linestyle=":")
        axes.annotate(
            "base",
            (0, 1.03),
            xycoords=("data", "axes fraction"),
            ha="center",
            color="#666666",
            fontsize=10,
        )
        if min(sweep.strengths) <= 1 <= max(sweep.strengths):
            axes.axvline(1, color="#999999", linewidth=1, linestyle=":")
            axes.annotate(
                "aligned",
                (1, 1.03),
                xycoords=("data", "axes fraction"),
                ha="center",
                color="#666666",
                fontsize=10,
            )
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(f"strength of the {sweep.knob} knob (lambda)")
        axes.set_ylabel("preference rate")
        if title:
            axes.set_title(title, loc="left", pad=22, fontsize=12)
        queries = sweep.rates[0].queries
        axes.legend(frameon=False, title=f"{queries} queries, 95% bands", loc="center left")


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


def draw_norms(found: Mapping[str, Any], path: Path) -> None:
    """Heat map of a vector: norm of the delta of each module (row) in each layer (column)."""
    import numpy as np

    modules = list(found["norms"])
    layers = sorted({layer for row in found["norms"].values() for layer in row}, key=_layer_order)
    grid = np.array(
        [[found["norms"][module].get(layer, np.nan) for layer in layers] for module in modules]
    ).reshape(len(modules), len(layers))
    with figure(path, max(5.0, 2.6 + 0.26 * len(layers)), 1.5 + 0.32 * len(modules)) as axes:
        axes.grid(visible=False)
        image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
        every = max(1, len(layers) // 16)
        axes.set_xticks(range(0, len(layers), every), layers[::every])
        axes.set_yticks(range(len(modules)), modules, fontsize=9)
        axes.set_xlabel("layer")
        axes.set_title(f"{found['name']}: norm {found['norm']:.3g}", loc="left", fontsize=12)
        axes.figure.colorbar(image, ax=axes, label="norm of the delta")


def _layer_order(layer: str) -> int:
    return int(layer) if layer.isdigit() else -1


def draw_behaviours(search: Search, path: Path) -> None:
    """A column a target, a row a domain: the wanted level's letter, its rate as the shade.

    A frame marks a domain whose wanted level does not have the highest rate.
    """
    from matplotlib.patches import Rectangle

    domains = sorted({domain for found in search.found for domain in found.target})
    with figure(path, 1.8 + 0.38 * len(search.found), 1.3 + 0.5 * len(domains)) as axes:
        for x, found in enumerate(search.found):
            for y, domain in enumerate(domains):
                if domain not in found.target:
                    continue
                level, rates = found.target[domain], found.rates[domain].rate
                rate = rates[level]
                missed = rate < max(rates.values())
                colour = _COLOURS.get(level, _OTHERS[0])
                axes.add_patch(
                    Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=colour, alpha=rate)
                )
                if missed:
                    axes.add_patch(
                        Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, linewidth=1.6)
                    )
                axes.text(
                    x, y, f"{level[0].upper()}\n{rate:.2f}".replace("0.", "."), ha="center",
                    va="center", fontsize=8, color="white" if rate > 0.6 else "black",
                )  # fmt: skip
        axes.set_xlim(-0.5, len(search.found) - 0.5)
        axes.set_ylim(len(domains) - 0.5, -0.5)
        axes.set_yticks(range(len(domains)), domains)
        axes.set_xticks([])
        axes.grid(False)
        reached = sum(found.reached for found in search.found)
        axes.set_title(f"{reached} of {len(search.found)} behaviours reached", fontsize=11)
        axes.set_xlabel("a column a behaviour: wanted level and its rate; framed where not reached")


def draw_front(search: Search, path: Path) -> None:
    """Of one target: the rate of the wanted level in each domain against what the model loses."""
    front = sorted(search.front, key=lambda one: one.retained.kl if one.retained else 0.0)
    lost = [one.retained.kl for one in front if one.retained]
    target = front[0].target
    with figure(path, 7.0, 4.2) as axes:
        for index, (domain, level) in enumerate(sorted(target.items())):
            rate = [one.rates[domain].rate[level] for one in front]
            low, high = zip(*(one.rates[domain].interval[level] for one in front), strict=True)
            colour = _OTHERS[index % len(_OTHERS)]
            axes.plot(lost, rate, "o-", color=colour, label=f"{domain}: {level}")
            axes.fill_between(lost, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("KL from the base on neutral text, nats a token")
        axes.set_ylabel("rate of the wanted level")
        axes.legend(frameon=False)
        axes.set_title("What a behaviour costs; left the base", loc="left", fontsize=12)


def draw_confusion(confusion: Mapping[str, Mapping[str, int]], path: Path) -> None:
    """A row an intended level, a column a chosen one: answers, shaded by their share of the row."""
    import numpy as np

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
            colour = _COLOURS.get(level, _OTHERS[index % len(_OTHERS)])
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
