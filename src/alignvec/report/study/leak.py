"""Over-generalisation: what each knob does to the other domains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from matplotlib.figure import Figure

from alignvec.report.study.document import Block, Cell, Chart, Column, Panel, Row, Table
from alignvec.report.study.results import WAYS, Results, at, rates, real, text
from alignvec.report.study.svg import INK, named

TITLE = "Over-generalisation"
ABOUT = (
    "Each knob alone at the place of each level, every domain measured. A field of the leak matrix "
    "is the rise of that level's likelihood rate over the base, in points from -1 to 1: the "
    "knob's own domain is framed, what stands elsewhere is leak.",
    "Normalised leakage is the mean rise elsewhere (falls count as none) over the rise at home, "
    "after the normalised value leakage of NeVA (arXiv 2602.07356); 0 is a knob that keeps to its "
    "domain, 1 one that knows no domains. It is empty where there is no rise at home.",
)
Matrix = dict[str, dict[str, float]]  # knob -> domain -> rise


def blocks(study: Results) -> Iterator[Block]:
    """The matrix of likelihoods, then what was written under the same settings."""
    panels: list[Panel] = []
    rows: list[Row] = []
    for way, told in WAYS.items():
        found = study.found.get(f"leak/{way}")
        knobs = [one for one in found if at(one, "knob")] if isinstance(found, list) else []
        home = {str(one["knob"]): str(at(one, "home")) for one in knobs}
        matrices = {level: _matrix(knobs, level) for level in study.levels}
        panels += [
            _panel(f"{told}: {level}", matrix, home)
            for level, matrix in matrices.items()
            if any(matrix.values())
        ]
        for one in knobs:
            for level, matrix in matrices.items():
                rise: dict[Column, Cell] = {
                    ("rise of the level's rate in", domain): value
                    for domain, value in matrix[str(one["knob"])].items()
                }
                rows.append({
                    ("", "by"): told, ("", "knob"): str(one["knob"]),
                    ("", "at the place of"): level, **rise,
                    ("leak", "normalised"): real(at(one, "normalised", level)),
                    ("leak", "KL on neutral text"): real(at(one, "neutral", level)),
                })  # fmt: skip
    if panels:
        yield Chart("leak-matrix", "Leak matrix: a row a knob, a column a domain", panels)
    if rows:
        yield Table("leak", "What each knob does, by likelihood", rows, "KL in nats a token.", 3)
    if judged := list(_written(study)):
        note = "A line a knob at the place of a level, and a domain that it is measured in."
        yield Table("leak-written", "The same settings, judged on what they write", judged, note, 4)


def _matrix(knobs: Sequence[object], level: str) -> Matrix:
    return {
        str(at(one, "knob")): {
            str(domain): value
            for domain, rise in (at(one, "effect", level) or {}).items()
            if (value := real(rise)) is not None
        }
        for one in knobs
    }


def _written(study: Results) -> Iterator[dict[Column, Cell]]:
    for way, told in WAYS.items():
        for knob in study.domains:
            for level in study.levels:
                found = study.found.get(f"leak-written/{way}/{knob}/{level}")
                for domain in study.domains:
                    if one := at(found, domain):
                        of: dict[Column, Cell] = {
                            ("", "by"): told, ("", "knob"): knob, ("", "at the place of"): level,
                            ("", "measured in"): domain,
                        }  # fmt: skip
                        yield of | rates(one, study.levels) | text(one)


def _panel(title: str, matrix: Matrix, home: dict[str, str]) -> Panel:
    columns = list(dict.fromkeys(domain for row in matrix.values() for domain in row))
    draw = partial(_draw, matrix, columns, home)
    return Panel(title, draw, 1.9 + 0.85 * len(columns), 1.1 + 0.55 * len(matrix))


def _draw(matrix: Matrix, columns: list[str], home: dict[str, str], drawn: Figure) -> None:
    axes = drawn.subplots()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    missing = float("nan")
    shade = [[row.get(domain, missing) for domain in columns] for row in matrix.values()]
    axes.pcolormesh(shade, cmap="RdBu", vmin=-1, vmax=1, edgecolors="white", linewidth=2)
    for y, (knob, row) in enumerate(matrix.items()):
        for x, domain in enumerate(columns):
            if domain in row:
                strong = abs(row[domain]) > 0.6
                axes.text(
                    x + 0.5, y + 0.5, f"{row[domain]:+.2f}", ha="center", va="center",
                    color="white" if strong else "black",
                    weight="bold" if home.get(knob) == domain else "normal",
                )  # fmt: skip
            if home.get(knob) == domain:
                axes.plot(
                    [x, x + 1, x + 1, x, x], [y, y, y + 1, y + 1, y], color=INK, clip_on=False
                )
    axes.set_xticks([x + 0.5 for x in range(len(columns))], [named(one, 12) for one in columns])
    axes.set_yticks([y + 0.5 for y in range(len(matrix))], [named(one, 12) for one in matrix])
    axes.tick_params(length=0)
    axes.invert_yaxis()
