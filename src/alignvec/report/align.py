"""How a training went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
