"""All 27 behaviours of three domains: ways to search, and ways to keep a knob to its own domain.

    python benchmarks/search_behaviours.py -o benchmarks/results/search.json --vectors FOLDER

FOLDER holds `DOMAIN-av` for medical, financial and legal (alignvec align and extract with their
defaults), and for the ways with two knobs a domain `DOMAIN-expert-av` and `DOMAIN-avoidance-av`
(`--prefer expert,generic` and `--prefer avoidance,generic`), and `DOMAIN-held-av` (`--hold` for
each of the other two). Ways:

    plain        three vectors added, as in the paper
    anchored     vectors trained with the other domains held still
    apart        `plain`, less the part that is common to them (their mean)
    two          two vectors a domain
    routed       `plain`, each knob on the queries of its own domain (a classifier picks it)
    routed two   `two`, likewise

Searched on the built-in validation queries, rates on test queries. Of each way also the leak
matrix (one domain's knobs turned from the base to its expert setting, how far the mean level of
each domain moves, in levels) and a figure beside OUT. Written after every way, and a way that is
there is not run again. The rows that cost most to make, in `search.json`:

    --ways anchored,two --queries 8 --held-out 10
    --ways plain --methods grid --queries 2 --held-out 10
    --ways "routed two" --methods optuna --passes 16 --queries 2 --held-out 10

and in `search_small.json` `--ways two --passes 36 --queries 4 --held-out 10`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from alignvec.data import LEVELS, Record, read_records
from alignvec.evaluate.rates import wins
from alignvec.knobs.model import KnobModel, domain_of
from alignvec.report.search import draw_behaviours
from alignvec.route import Router
from alignvec.search import Scorer, behaviours, search
from alignvec.search.search import split_for_search
from alignvec.vector.alignment_vector import AlignmentVector
from provenance import made

DOMAINS = ("financial", "legal", "medical")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--ways", default="plain,apart,two,routed,routed two")
    parser.add_argument("--methods", default="surface", help="surface,grid,optuna")
    parser.add_argument("--passes", type=int, help="Of every method; default: its own.")
    parser.add_argument("--queries", type=int, help="At most, a domain, to search on.")
    parser.add_argument("--held-out", type=int, help="At most, a domain, to verify on.")
    options = parser.parse_args()
    records = list(read_records("builtin", LEVELS))
    searched, held_out = split_for_search(records, "builtin", DOMAINS, options.queries)
    held_out = few(held_out, options.held_out)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    router: Router | None = None
    for way in options.ways.split(","):
        for method in options.methods.split(","):
            name = way if method == "surface" else f"{way}, {method}"
            if name in results:
                continue
            model = KnobModel.from_pretrained("embedded", vectors(options.vectors, way))
            if way.startswith("routed"):
                router = router or trained(model, records)
            figure = options.out.with_name(f"{options.out.stem}-{name.replace(' ', '-')}")
            result = measured(model, searched, held_out, method, options.passes,
                              router if way.startswith("routed") else None, figure)  # fmt: skip
            results[name] = result
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps({**results, "made": made()}, indent=1) + "\n")
            print(name, {key: result[key] for key in ("reached", "firmly", "passes", "seconds")})


def vectors(folder: Path, way: str) -> dict[str, AlignmentVector]:
    if "two" in way:
        knobs = [f"{domain}-{level}" for domain in DOMAINS for level in ("expert", "avoidance")]
        return {knob: AlignmentVector.from_pretrained(folder / f"{knob}-av") for knob in knobs}
    kind = "held-av" if way == "anchored" else "av"
    found = {
        d: AlignmentVector.from_pretrained(folder / f"{d}-{kind}").in_memory() for d in DOMAINS
    }
    if way == "apart":
        first, second, third = found.values()
        common = (1 / 3) * (first + second + third)
        return {domain: vector - common for domain, vector in found.items()}
    return found


def trained(model: KnobModel, records: list[Record]) -> Router:
    seen = [record for record in records if record.split != "test"]
    return Router.fit(
        model.model, model.tokenizer, [r.query for r in seen], [r.domain for r in seen]
    )


def measured(
    model: KnobModel,
    searched: list[Record],
    held_out: list[Record],
    method: str,
    passes: int | None,
    router: Router | None,
    figure: Path,
) -> dict[str, Any]:
    start = time.perf_counter()
    targets = list(behaviours(DOMAINS, LEVELS))
    result = search(model, targets, searched, held_out, LEVELS, method, passes, router=router)
    draw_behaviours(result, figure)
    return {
        "reached": sum(found.reached for found in result.solutions),
        "firmly": sum(found.reached_clearly for found in result.solutions),
        "passes": result.passes,
        "seconds": result.seconds,
        "queries": result.queries,
        "held_out": len(held_out),
        "leak": leak(model, held_out, result.to_json()["found"], router),
        "wall_seconds": time.perf_counter() - start,
        "found": [
            {
                "target": found.target,
                "setting": found.setting,
                "reached": found.reached,
                "rates": {domain: rates.rate for domain, rates in found.rates.items()},
            }
            for found in result.solutions
        ],
    }


def leak(
    model: KnobModel, records: list[Record], found: list[dict[str, Any]], router: Router | None
) -> dict[str, dict[str, float]]:
    """row domain -> column domain -> levels that its mean moved."""
    queries = [record.query for record in records]
    scorer = Scorer(model, records, LEVELS, model.acting(router, queries) if router else None)
    domains = np.array(scorer.domains)
    expert = next(f for f in found if set(f["target"].values()) == {"expert"})["setting"]

    def mean_levels(setting: dict[str, float]) -> dict[str, float]:
        shares = wins(scorer(np.array([setting.get(knob, 0.0) for knob in scorer.knobs])))
        level = shares @ np.arange(len(LEVELS))
        return {domain: float(level[domains == domain].mean()) for domain in DOMAINS}

    base = mean_levels({})
    moved = {}
    for domain in DOMAINS:
        own = [k for k, v in model.vectors.items() if domain in (k, domain_of(k, v))]
        turned = mean_levels({knob: expert[knob] for knob in own})
        moved[domain] = {column: turned[column] - base[column] for column in DOMAINS}
    return moved


def few(records: list[Record], most: int | None) -> list[Record]:
    return [
        record
        for domain in DOMAINS
        for record in [one for one in records if one.domain == domain][:most]
    ]


if __name__ == "__main__":
    main()
