"""Asked for a share of expert responses, how near does a calibrated knob come on unseen queries?

    python benchmarks/calibration.py -o benchmarks/results/calibration.json --vectors FOLDER

FOLDER holds `DOMAIN-av` for medical, financial and legal. Each knob is calibrated on the built-in
validation queries of its domain and then asked for shares on the test queries.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from alignvec import KnobModel
from alignvec.data import LEVELS, read_records
from alignvec.evaluate import preference_rates, response_rows
from alignvec.progress import progress
from alignvec.search.calibrate import calibrate

SHARES = (20, 50, 80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--vectors", type=Path, required=True)
    options = parser.parse_args()
    results, errors = {}, []
    for domain in ("medical", "financial", "legal"):
        model = KnobModel.from_pretrained("embedded", {domain: options.vectors / f"{domain}-av"})
        measured_on = list(read_records("builtin", LEVELS, domain, "validation"))
        with progress(domain, "pass") as advance:
            found = calibrate(model, domain, measured_on, LEVELS, on_pass=advance)
        unseen = list(read_records("builtin", LEVELS, domain, "test"))
        rows = response_rows(model.tokenizer, unseen, LEVELS)
        got = {}
        for share in SHARES:
            strength = found.strength(domain, f"{share}%")
            with model.at({domain: strength}):
                rates = preference_rates(model.model, rows, LEVELS)
            got[share] = {
                "strength": strength,
                "rate": rates.rate["expert"],
                "interval": rates.interval["expert"],
            }
            errors.append(abs(rates.rate["expert"] - share / 100))
            print(domain, f"{share}%", got[share], flush=True)
        results[domain] = {
            "calibrated_on": len(measured_on), "test": len(unseen), "levels": found.levels,
            "safe": found.safe, "asked": got,
        }  # fmt: skip
    summary = {
        "mean_error": float(np.mean(errors)),
        "largest_error": max(errors),
        "within_10_points": sum(error <= 0.1 for error in errors),
        "asked": len(errors),
    }
    options.out.write_text(json.dumps({**summary, "domains": results}, indent=1) + "\n")
    print(summary)


if __name__ == "__main__":
    main()
