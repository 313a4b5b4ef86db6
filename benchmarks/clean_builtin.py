"""Does `data clean` find every fault, and does it leave good records alone?

    python benchmarks/clean_builtin.py -o benchmarks/results/clean.json

The built-in set is cleaned as it is: whatever is rejected is a false alarm. Then faults of every
rule are planted in it (`tests/data/dirty.py`, a seed a run) and it is cleaned again: a fault counts
as found under its rule, or under another that says as much (swapped levels may read as a refusal).

The thresholds were chosen on the built-in set with faults of other seeds; rules and faults have the
same author, so that faults of other wordings may be found less often.
"""

from __future__ import annotations

import argparse
import runpy
import tempfile
import time
from pathlib import Path
from typing import Any

from alignvec.data.quality.clean import clean
from alignvec.files import write_json
from provenance import made

FIRST_SEED = 100  # the thresholds were chosen with those up to 33
DIRTY = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "data" / "dirty.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--each", type=int, default=12, help="Faults of a rule, a seed.")
    options = parser.parse_args()
    start = time.perf_counter()
    untouched = clean("builtin").report()
    seconds = time.perf_counter() - start
    total: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "dirty.jsonl"
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
            rule_of = DIRTY["dirty"](path, options.each, seed)
            add(total, DIRTY["outcome"](clean(path), rule_of))
            print(seed, total, flush=True)
    good = total.pop("good")
    result = {
        "untouched": {
            "records": untouched["read"],
            "rejected": untouched["rejected"],
            "false_rejection_rate": 1 - untouched["kept"] / untouched["read"],
            "levels_in_order": untouched["levels_in_order"],
            "seconds": round(seconds, 1),
        },
        "dirtied": {
            "seeds": options.seeds,
            "faults": total,
            "found": sum(one["found"] for one in total.values()),
            "planted": sum(one["planted"] for one in total.values()),
            "good_records": good["records"],
            "false_rejection_rate": good["rejected"] / good["records"],
        },
    }
    write_json(options.out, {**result, "made": made()})
    print(result)


def add(total: dict[str, dict[str, int]], outcome: dict[str, Any]) -> None:
    for rule, counts in outcome.items():
        known = total.setdefault(rule, dict.fromkeys(counts, 0))
        for what, count in counts.items():
            known[what] += count


if __name__ == "__main__":
    main()
