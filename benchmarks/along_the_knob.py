"""What a knob does at the place of each level, and a bank at every behaviour: rates and text.

    python benchmarks/along_the_knob.py lines --work WORK -o benchmarks/results/lines.json
    python benchmarks/along_the_knob.py bank --work WORK -o benchmarks/results/bank.json
    python benchmarks/along_the_knob.py objectives --work WORK -o benchmarks/results/objectives.json

`lines`: one vector a domain and seed, with every default of `alignvec align`; rates on the test
part, 20 answers at each place, as they came, and which of them are broken texts. `bank`: three
knobs in one training, added at the places of each of the 27 behaviours, no search and no router;
the leak of each, and what it writes in every behaviour. `objectives`: one domain, other losses at
the same cost, on the validation part. What is trained and measured already is taken from WORK and
from the output, so a run that is killed goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from alignvec.data import LEVELS, Record, read_records
from alignvec.data.line import spaced
from alignvec.evaluate.broken import Bounds
from alignvec.evaluate.check import check_levels
from alignvec.evaluate.leak import measure_leak
from alignvec.evaluate.rates import rates_of
from alignvec.evaluate.text import LENGTH, AnswerProbe, text_quality
from alignvec.knobs.model import KnobModel
from alignvec.search.scorer import Scorer
from alignvec.search.solution import Solution
from alignvec.search.target import behaviours
from provenance import made

DOMAINS = ("medical", "financial", "legal")
PLACES = spaced(LEVELS)
_ROWS = 54  # answered at once
OBJECTIVES: dict[str, list[str]] = {
    "simpo (default)": [],
    "softmax": ["--loss", "softmax"],
    "orpo": ["--loss", "orpo", "--beta", "1"],
    "dpo": ["--loss", "dpo"],
    "dpo_norm": ["--loss", "dpo_norm"],
    "ipo": ["--loss", "ipo"],
    "simpo, no likelihood": ["--likelihood", "0"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["lines", "bank", "objectives"])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="Where vectors are kept.")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--queries", type=int, help="Only so many a domain.")
    parser.add_argument("--asked", type=int, default=4, help="Queries a domain a bank answers.")
    parser.add_argument("--epochs", help="Passes over the records, in the place of the default.")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = {}
    if options.out.exists():
        done = json.loads(options.out.read_text())["runs"]
    for name, run in {"lines": lines, "bank": bank, "objectives": objectives}[options.part](
        options
    ).items():
        if name not in done:
            done[name] = run()
            result = {"made": made(), "base": Path(options.base).name, "runs": done}
            options.out.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{name}: done", flush=True)


def lines(options: argparse.Namespace) -> dict[str, Any]:
    def measured(domain: str, seed: int) -> dict[str, Any]:
        vector = trained(options, f"{domain}-{seed}", ["--domain", domain, "--seed", str(seed)])
        return at_places(options, vector, domain, held_out(options, domain, "test"))

    return {
        f"{domain}, seed {seed}": lambda domain=domain, seed=seed: measured(domain, seed)
        for seed in options.seeds
        for domain in options.domains
    }


def objectives(options: argparse.Namespace) -> dict[str, Any]:
    domain = options.domains[0]

    def measured(name: str, more: Sequence[str]) -> dict[str, Any]:
        folder = name.replace(" ", "-").replace(",", "").strip("()")
        vector = trained(options, f"{domain}-{folder}", ["--domain", domain, *more])
        return at_places(options, vector, domain, held_out(options, domain, "validation"))

    return {
        name: lambda name=name, more=more: measured(name, more) for name, more in OBJECTIVES.items()
    }


def bank(options: argparse.Namespace) -> dict[str, Any]:
    def opened(seed: int) -> KnobModel:
        more = ["--domain", ",".join(options.domains), "--seed", str(seed)]
        vectors = trained(options, f"bank-{seed}", more)
        folders = {domain: vectors / domain for domain in options.domains}
        return KnobModel.from_pretrained(options.base, folders)

    def measured(seed: int) -> dict[str, Any]:
        model = opened(seed)
        records = [r for d in options.domains for r in held_out(options, d, "test")]
        scorer = Scorer(model, records, list(LEVELS))
        domains = np.array(scorer.domains)
        found = []
        for target in behaviours(options.domains, LEVELS):
            scores = scorer(np.array([PLACES[target[knob]] for knob in scorer.knobs]))
            rates = {d: rates_of(scores[domains == d], LEVELS) for d in options.domains}
            setting = {knob: PLACES[target[knob]] for knob in scorer.knobs}
            found.append(Solution(target, setting, rates))
        leaks = measure_leak(model, dict.fromkeys(options.domains, PLACES), records)
        return {
            "seconds": json.loads((options.work / f"bank-{seed}" / "training.json").read_text())[
                "seconds"
            ],
            "reached": sum(one.reached for one in found),
            "firmly": sum(one.reached_clearly for one in found),
            "behaviours": [one.to_json() for one in found],
            "leak": [leak.to_json() for leak in leaks],
        }

    def read(seed: int) -> dict[str, Any]:
        """What it writes in every behaviour, greedily, to some queries of every domain."""
        model = opened(seed)
        asked = [r for d in options.domains for r in held_out(options, d, "test")[: options.asked]]
        targets = list(behaviours(options.domains, LEVELS))
        settings = [{}, *({knob: PLACES[level] for knob, level in t.items()} for t in targets)]
        rows = [(record.prompt, setting) for setting in settings for record in asked]
        said: list[str] = []
        for start in range(0, len(rows), _ROWS):
            prompts, knobs = zip(*rows[start : start + _ROWS], strict=True)
            said += model.generate(list(prompts), list(knobs), LENGTH)
            print(f"answered: {len(said)} of {len(rows)}", flush=True)
        texts = [said[start : start + len(asked)] for start in range(0, len(said), len(asked))]
        train = [r for d in options.domains for r in read_records("builtin", LEVELS, d, "train")]
        bounds = Bounds.of(texts[0], [record.levels[level] for record in train for level in LEVELS])

        def seen(found: Sequence[str]) -> dict[str, Any]:
            return {
                "quality": asdict(text_quality(found)),
                "broken": sum(bounds.broken(text) is not None for text in found),
                "answers": list(found),
            }

        return {
            "queries": [{"domain": record.domain, "query": record.query} for record in asked],
            "bounds": bounds.to_json(),
            "base": seen(texts[0]),
            "behaviours": [
                {"target": target, **seen(found)}
                for target, found in zip(targets, texts[1:], strict=True)
            ],
        }

    return {
        name: lambda run=run, seed=seed: run(seed)
        for seed in options.seeds
        for name, run in ((f"seed {seed}", measured), (f"seed {seed}, text", read))
    }


def trained(options: argparse.Namespace, name: str, more: Sequence[str]) -> Path:
    """The folder of the vector, or of the vectors of a bank; as a user would make it."""
    work: Path = options.work
    more = [*more, "--epochs", options.epochs] if options.epochs else more
    aligned, vector = work / name, work / f"{name}-av"
    for command, out in (
        (["align", options.base, "--answers", "0", *more], aligned),
        (["extract", options.base, str(aligned)], vector),
    ):
        if not out.exists():
            subprocess.run([sys.executable, "-m", "alignvec", *command, "-o", str(out)], check=True)
    return vector


def held_out(options: argparse.Namespace, domain: str, split: str) -> list[Record]:
    return list(read_records("builtin", LEVELS, domain, split))[: options.queries]


def at_places(
    options: argparse.Namespace, vector: Path, domain: str, records: Sequence[Record]
) -> dict[str, Any]:
    """Rates and text at 0 and at each level's place, with the answers."""
    model = KnobModel.from_pretrained(options.base, {domain: vector})
    probe = AnswerProbe(model, [record.prompt for record in records[: options.answers]])
    checks = check_levels(model, domain, records, PLACES, options.answers, probe)
    answers = [
        probe.answers({domain: check.strength} if check.level else {})["greedy"] for check in checks
    ]
    train = read_records("builtin", LEVELS, domain, "train")
    bounds = Bounds.of(answers[0], [record.levels[level] for record in train for level in LEVELS])
    return {
        "training_seconds": model.vectors[domain].training["seconds"],
        "queries": probe.queries,
        "bounds": bounds.to_json(),
        "levels": [
            {
                **asdict(check),
                "answers": texts,
                "broken": Counter(filter(None, map(bounds.broken, texts))),
            }
            for check, texts in zip(checks, answers, strict=True)
        ],
    }


if __name__ == "__main__":
    main()
