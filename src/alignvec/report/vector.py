"""What is in a vector, and how several relate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from alignvec.report.figure import figure


def vector_summary(name: str, found: Mapping[str, Any]) -> str:
    """A vector in a few lines, and its largest modules with their share of the squared norm."""
    rank = f", rank {found['rank']}" if found["rank"] else ""
    energy = f", {found['energy']:.1%} of the energy" if found["energy"] else ""
    lines = [
        f"{name}: {found['kind']}{rank}{energy}, {found['dtype']}, norm {found['norm']:.4g}",
        f"  {found['tensors']} tensors, {found['parameters']:,} weights, on base "
        f"{found['base']['id']} ({found['base']['fingerprint'][:8]})",
    ]
    total = found["norm"] ** 2 or 1.0
    shares = {
        module: sum(norm**2 for norm in layers.values()) / total
        for module, layers in found["norms"].items()
    }
    for module, share in sorted(shares.items(), key=lambda item: -item[1])[:12]:
        lines.append(f"  {share:6.1%}  {module}")
    return "\n".join(lines)


def matrix_table(title: str, matrix: Mapping[str, Mapping[str, float | None]]) -> Table:
    """A value for each pair of vectors, as `vector.inspect.compare` gives them."""
    table = Table("", *matrix, title=title)
    for name, row in matrix.items():
        table.add_row(name, *("-" if x is None else f"{x:.3f}" for x in row.values()))
    return table


def draw_norms(found: Mapping[str, Any], path: Path) -> None:
    """Heat map of a vector: norm of the delta of each module (row) in each layer (column)."""
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
