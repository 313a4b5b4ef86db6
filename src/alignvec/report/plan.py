"""What a study would take, before it runs: a line a part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from alignvec.reproduce.cost import Cost
from alignvec.reproduce.item import Item, Work, total, works
from alignvec.reproduce.room import Room
from alignvec.reproduce.run import items_of
from alignvec.reproduce.study import Study


def plan_json(study: Study, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Part -> what it reads and writes, and the seconds that it may take; memory and disk in bytes;
    None if not known. What several parts share is the first one's.
    """
    every = list(items_of(study, parts))
    items = [item for _, item in every]
    done, todo = [i for i in items if study.done(i)], [i for i in items if not study.done(i)]
    cost = Cost.of(study, done)
    work = dict(zip((item.name for item in items), works(items), strict=True))
    left = dict(zip((item.name for item in todo), works(todo, done), strict=True))
    by_part: dict[str, list[Item]] = {}
    for part, item in every:
        by_part.setdefault(part, []).append(item)

    def of(some: Sequence[Item], each: dict[str, Work]) -> Work:
        return total(each[item.name] for item in some if item.name in each)

    return {
        "base": study.told["base"],
        "parameters": _known(cost.parameters),
        "device": cost.device,
        "scale": study.told["scale"],
        "bytes": {name: _known(size) for name, size in asdict(Room.of(study, cost)).items()},
        "parts": {
            part: {
                "items": len(some),
                "done": sum(map(study.done, some)),
                "rows_trained": of(some, work).trained,
                "rows_scored": of(some, work).scored,
                "answers_written": of(some, work).written,
                "seconds": _known(cost.seconds(of(some, left))),
            }
            for part, some in by_part.items()
        },
    }


def plan_table(study: Study, parts: Sequence[str] = ()) -> Table:
    """The same, to read."""
    plan = plan_json(study, parts)
    size = plan["parameters"]
    told = f", {size / 1e6:,.0f}M parameters" if size else ""
    table = Table(title=f"{plan['base']}{told} on {plan['device']}", caption=_room(plan["bytes"]))
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


def _room(needed: dict[str, float | None]) -> str | None:
    """In a sentence; nothing of a base whose size is not known."""
    if any(size is None for size in needed.values()):
        return None
    told = {name: f"{(size or 0) / 1e9:,.1f} GB" for name, size in needed.items()}
    beside = f" and {told['vectors']} of RAM for vectors" if needed["vectors"] else ""
    return (
        f"At least {told['training']} of memory where all weights are trained (of all GPUs "
        f"together), {told['running']} where the model runs{beside}, and {told['disk']} of disk."
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 1)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
