"""What a study would take, before it runs: a line a part."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from alignvec.reproduce.cost import Cost
from alignvec.reproduce.item import Item, total
from alignvec.reproduce.run import items_of
from alignvec.reproduce.study import Study


def plan_json(study: Study, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Part -> what it reads and writes, and the seconds that it may take; None if not known."""
    by_part: dict[str, list[Item]] = defaultdict(list)
    for part, item in items_of(study, parts):
        by_part[part].append(item)
    done = [item for some in by_part.values() for item in some if study.done(item)]
    cost = Cost.of(study, done)
    return {
        "base": study.told["base"],
        "parameters": _known(cost.parameters),
        "device": cost.device,
        "scale": study.told["scale"],
        "parts": {
            part: {
                "items": len(some),
                "done": sum(map(study.done, some)),
                "rows_trained": total(some).trained,
                "rows_scored": total(some).scored,
                "answers_written": total(some).written,
                "seconds": _known(cost.seconds(total([i for i in some if not study.done(i)]))),
            }
            for part, some in by_part.items()
        },
    }


def plan_table(study: Study, parts: Sequence[str] = ()) -> Table:
    """The same, to read."""
    plan = plan_json(study, parts)
    size = plan["parameters"]
    told = f", {size / 1e6:,.0f}M parameters" if size else ""
    table = Table(title=f"{plan['base']}{told} on {plan['device']}")
    table.add_column("part")
    for name in ("results", "there", "rows trained", "rows scored", "answers", "about"):
        table.add_column(name, justify="right")
    for part, found in plan["parts"].items():
        table.add_row(
            part,
            *(
                f"{found[key]:,.0f}"
                for key in ("items", "done", "rows_trained", "rows_scored", "answers_written")
            ),
            _time(found["seconds"]),
        )
    seconds = [found["seconds"] for found in plan["parts"].values()]
    every = None if None in seconds else sum(seconds)
    table.add_section()
    table.add_row("all", "", "", "", "", "", _time(every))
    return table


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 1)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
