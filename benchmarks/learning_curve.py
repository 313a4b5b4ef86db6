"""How many pairs does a knob need? One domain, vectors from growing parts of its train split.

    python benchmarks/learning_curve.py -o benchmarks/results/learning_curve

Every vector is trained with alignvec's defaults and measured on the test split at a few strengths.
Writes OUT.json after every size (a run that is killed goes on) and OUT.png/.svg.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignvec.align import AlignSettings, align
from alignvec.data import LEVELS, preference_pairs, read_records
from alignvec.evaluate import preference_rates, response_rows
from alignvec.files import write_json
from alignvec.knobs.model import KnobModel
from alignvec.report.figure import figure
from alignvec.vector import AlignmentVector
from provenance import made

STRENGTHS = (-2.0, 1.0, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--domain", default="medical")
    parser.add_argument("--queries", type=int, nargs="+", default=[8, 16, 32, 64, 152])
    options = parser.parse_args()
    file = options.out.with_suffix(".json")
    done: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    done.pop("made", None)
    train = list(read_records("builtin", domain=options.domain, split="train"))
    test = list(read_records("builtin", domain=options.domain, split="test"))
    for count in options.queries:
        if str(count) not in done:
            done[str(count)] = measure(train[:count], test)
            write_json(file, {**done, "made": made()})
    draw(done, options.out, options.domain)


def measure(train: list[Any], test: list[Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        pairs = list(preference_pairs(train, ["expert", "generic", "avoidance"]))
        aligned = align("embedded", pairs, Path(scratch) / "aligned", AlignSettings())
        seconds = json.loads((aligned / "training.json").read_text())["seconds"]
        vector = AlignmentVector.extract("embedded", aligned)
        model = KnobModel.from_pretrained("embedded", {"knob": vector})
        rows = response_rows(model.tokenizer, test, LEVELS)
        points = {
            str(strength): asdict(preference_rates(model.set(knob=strength).model, rows, LEVELS))
            for strength in STRENGTHS
        }
    return {"pairs": len(pairs), "seconds": seconds, "norm": vector.norm(), "points": points}


def draw(done: dict[str, Any], path: Path, domain: str) -> None:
    sizes = sorted(done.values(), key=lambda entry: entry["pairs"])
    pairs = [entry["pairs"] for entry in sizes]
    with figure(path) as axes:
        for strength, level, colour, marker in (
            ("-2.0", "avoidance", "#D55E00", "o"),
            ("1.0", "expert", "#56B4E9", "^"),
            ("2.0", "expert", "#0072B2", "D"),
        ):
            rate = [entry["points"][strength]["rate"][level] for entry in sizes]
            low, high = zip(
                *(entry["points"][strength]["interval"][level] for entry in sizes), strict=True
            )
            label = f"{level} at lambda {float(strength):g}"
            axes.fill_between(pairs, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(pairs, rate, color=colour, marker=marker, linewidth=2, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(pairs, [str(count) for count in pairs])
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("preference pairs trained on")
        axes.set_ylabel("preference rate on the test split")
        axes.set_title(f"How many pairs a {domain} knob needs", loc="left", fontsize=12)
        axes.legend(frameon=False, loc="lower right")


if __name__ == "__main__":
    main()
