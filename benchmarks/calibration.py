"""Asked for a share of expert responses, how near does a calibrated knob come on unseen queries?

    python benchmarks/calibration.py -o benchmarks/results/calibration.json --vectors FOLDER

FOLDER holds `DOMAIN-av` for medical, financial and legal, trained on the built-in train part. Of
each domain's other queries every third is left out in turn: the knob is calibrated on the rest and
asked for shares on those left out. So each query is unseen once, and a rate is over all of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from alignvec.data import LEVELS, read_records
from alignvec.evaluate.rates import wins
from alignvec.knobs.model import KnobModel
from alignvec.search import Scorer
from alignvec.search.calibrate import fit_calibration
from provenance import made

SHARES = (20, 50, 80)
FOLDS = 3
STRENGTHS = np.linspace(-3, 3, 13)  # as `alignvec calibrate` measures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--vectors", type=Path, required=True)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for domain in ("medical", "financial", "legal"):
        results[domain] = asked(domain, options.vectors / f"{domain}-av")
        print(domain, results[domain]["asked"], flush=True)
    errors = {
        share: [abs(found["asked"][share]["rate"] - share / 100) for found in results.values()]
        for share in SHARES
    }
    summary = {
        "largest_error": {share: max(found) for share, found in errors.items()},
        "mean_error": {share: float(np.mean(found)) for share, found in errors.items()},
    }
    options.out.write_text(
        json.dumps({**summary, "domains": results, "made": made()}, indent=1) + "\n"
    )
    print(summary)


def asked(domain: str, vector: Path) -> dict[str, Any]:
    model = KnobModel.from_pretrained("embedded", {domain: vector})
    records = [
        record
        for split in ("validation", "test")
        for record in read_records("builtin", LEVELS, domain, split)
    ]
    scorer = Scorer(model, records, LEVELS)
    scores = np.array([scorer(np.array([strength])) for strength in STRENGTHS])
    fold = np.arange(len(records)) % FOLDS
    units = [
        fit_calibration(STRENGTHS, scores[:, fold != f], (-3, 3), LEVELS) for f in range(FOLDS)
    ]
    got = {}
    for share in SHARES:
        turned = [found.strength(domain, f"{share}%") for found in units]
        rate = float(wins(scorer(np.array(turned)[fold][:, None]))[:, -1].mean())
        got[share] = {
            "strengths": turned,
            "rate": rate,
            "sampling_error": round(float(np.sqrt(rate * (1 - rate) / len(records))), 4),
        }
    return {"queries": len(records), "asked": got}


if __name__ == "__main__":
    main()
