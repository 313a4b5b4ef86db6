"""All 27 behaviours of three domains: vectors and a search, against a retraining for each.

    python benchmarks/retraining.py -o benchmarks/results/retraining.json --work FOLDER

With vectors: two trainings a domain (towards expert, towards avoidance, both away from generic), a
router, and one search for all 27 targets on validation queries. Without: a model is trained for
each behaviour, jointly on the three domains, with the same records, loss, batch and number of
epochs. Three behaviours are trained fully (in which every domain takes every level once); the time
of the other 24 is counted by their mean. Rates are of test queries.

FOLDER keeps the models; what is in the output already is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alignvec.align import AlignSettings, align
from alignvec.data import LEVELS, Record, read_records
from alignvec.data.pairs import PreferencePair, preference_pairs
from alignvec.evaluate import preference_rates, response_rows
from alignvec.knobs.model import KnobModel
from alignvec.route import Router
from alignvec.search import Solution, Target, behaviours, search
from alignvec.search.search import split_for_search
from alignvec.vector.alignment_vector import AlignmentVector
from provenance import made

DOMAINS = ("financial", "legal", "medical")
RETRAINED: list[Target] = [
    {domain: LEVELS[(place + turn) % 3] for place, domain in enumerate(DOMAINS)}
    for turn in range(3)
]
BEHAVIOURS = 27


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--passes", type=int, help="Of the search; default: its own.")
    parser.add_argument("--queries", type=int, help="At most, a domain, to search on.")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}

    def once(name: str, measure: Callable[[], dict[str, Any]]) -> None:
        if name not in results:
            start = time.perf_counter()
            found = measure()
            results[name] = {"seconds": round(time.perf_counter() - start, 1), **found}
            options.out.write_text(json.dumps({**results, "made": made()}, indent=1) + "\n")
            print(name, results[name]["seconds"], "s", flush=True)

    options.work.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        for level in ("expert", "avoidance"):
            folder = options.work / f"{domain}-{level}"
            once(f"vector {domain} {level}", lambda d=domain, to=level, f=folder: vector(d, to, f))  # type: ignore[misc]
    once("search", lambda: searched(options))
    for target in RETRAINED:
        name = ",".join(f"{domain}={level}" for domain, level in target.items())
        once(f"retrain {name}", lambda t=target, n=name: retrained(t, options.work / n))  # type: ignore[misc]

    def total(kind: str) -> float:
        found = [one for name, one in results.items() if name.startswith(kind)]
        return sum(float(one.get("own_seconds", one["seconds"])) for one in found)

    with_vectors = total("vector") + total("search")
    retraining = BEHAVIOURS * total("retrain") / len(RETRAINED)
    results["summary"] = {
        "vectors_seconds": round(total("vector"), 1),
        "search_seconds": round(total("search"), 1),
        "mean_retraining_seconds": round(total("retrain") / len(RETRAINED), 1),
        "all_retrainings_seconds": round(retraining, 1),
        "times_faster": round(retraining / with_vectors, 2),
    }
    options.out.write_text(json.dumps({**results, "made": made()}, indent=1) + "\n")
    print(results["summary"])


def vector(domain: str, level: str, folder: Path) -> dict[str, Any]:
    pairs = preference_pairs(read_records("builtin", LEVELS, domain, "train"), [level, "generic"])
    aligned = align("embedded", list(pairs), folder.with_name(f"{folder.name}-aligned"),
                    provenance={"domain": domain})  # fmt: skip
    AlignmentVector.extract("embedded", str(aligned)).save_pretrained(folder)
    return {}


def searched(options: argparse.Namespace) -> dict[str, Any]:
    records = list(read_records("builtin", LEVELS))
    some, held_out = split_for_search(records, "builtin", DOMAINS, options.queries)
    knobs = [f"{domain}-{level}" for domain in DOMAINS for level in ("expert", "avoidance")]
    start = time.perf_counter()
    model = KnobModel.from_pretrained("embedded", {knob: options.work / knob for knob in knobs})
    seen = [r for domain in DOMAINS for r in read_records("builtin", LEVELS, domain, "train")]
    queries, domains = [r.query for r in seen], [r.domain for r in seen]
    router = Router.fit(model.model, model.tokenizer, queries, domains)
    result = search(
        model, list(behaviours(DOMAINS, LEVELS)), some, held_out, LEVELS, passes=options.passes,
        router=router,
    )  # fmt: skip
    verification = result.seconds["verification"]
    return {
        # Retrained models are not verified either in the time that is compared.
        "own_seconds": round(time.perf_counter() - start - verification, 1),
        "verification_seconds": round(verification, 1),
        "reached": sum(found.reached for found in result.solutions),
        "firmly": sum(found.reached_clearly for found in result.solutions),
        "passes": result.passes,
        "queries": result.queries,
    }


def retrained(target: Target, folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    pairs = [pair for domain, level in target.items() for pair in towards(domain, level)]
    align("embedded", pairs, folder, AlignSettings())
    took = time.perf_counter() - start
    model = KnobModel.from_pretrained(
        "embedded", {"all": AlignmentVector.extract("embedded", str(folder))}
    ).set(all=1)
    rates = {}
    for domain in DOMAINS:
        test = list(read_records("builtin", LEVELS, domain, "test"))
        rows = response_rows(model.tokenizer, test, LEVELS)
        rates[domain] = preference_rates(model.model, rows, LEVELS)
    found = Solution(target, {}, rates)
    return {
        "own_seconds": round(took, 1),
        "pairs": len(pairs),
        "reached": found.reached,
        "firmly": found.reached_clearly,
        "rates": {domain: rate.rate for domain, rate in rates.items()},
    }


def towards(domain: str, level: str) -> Iterator[PreferencePair]:
    """Two pairs a record, as many as a domain's two vectors are trained on: the level preferred to
    its neighbours, and of an end the middle to the other end.
    """
    records: list[Record] = list(read_records("builtin", LEVELS, domain, "train"))
    if level == "generic":
        for record in records:
            for other in ("expert", "avoidance"):
                yield from preference_pairs([record], ["generic", other])
    else:
        other = {"expert": "avoidance", "avoidance": "expert"}[level]
        yield from preference_pairs(records, [level, "generic", other])


if __name__ == "__main__":
    main()
