"""A setting folded to disk, against reading its inputs and writing its output durably, in one run.

    python benchmarks/fold_speed.py -o benchmarks/results/fold_speed.json --scratch SCRATCH
    python benchmarks/fold_speed.py -o fold_speed_8b.json --shape 8b --blocks 32 --scratch SCRATCH

A random Llama checkpoint in bfloat16 and a low-rank vector on every linear layer. The floor reads
every byte of the base, writes as many and calls fsync, which `cp` does not and alignvec does.
They take turns; the page cache holds the inputs for both. The ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from gate_speed import SHAPES, load, three_vectors
from provenance import made

_PIECE = 1 << 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--shape", choices=[*SHAPES], default="7b")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    base, vector = options.scratch / "base", options.scratch / "vector"
    if not vector.exists():
        model, tokenizer, _ = load(options.shape, options.blocks)
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
        three_vectors(model, None)["one"].save_pretrained(vector)
        del model
    seconds: dict[str, list[float]] = {"fold": [], "floor": [], "start": []}
    for _ in range(options.rounds):
        seconds["floor"].append(copied(base, options.scratch / "copy"))
        seconds["start"].append(timed([sys.executable, "-c", "import torch"]))
        out = options.scratch / "folded"
        seconds["fold"].append(
            timed(
                [sys.executable, "-m", "alignvec", "fold", str(base), "--vector", f"k={vector}",
                 "--set", "k=0.7", "--any-base", "-o", str(out)]
            )
        )  # fmt: skip
        shutil.rmtree(out)
    ratios = [f / c for f, c in zip(seconds["fold"], seconds["floor"], strict=True)]
    result = {
        "made": made(),
        "shape": options.shape,
        "bytes": sum(file.stat().st_size for file in base.glob("*.safetensors")),
        "seconds": {name: round(statistics.median(took), 2) for name, took in seconds.items()},
        "fold_over_floor": round(statistics.median(ratios), 2),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def copied(source: Path, target: Path) -> float:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    start = time.perf_counter()
    for file in source.iterdir():
        with file.open("rb") as read, (target / file.name).open("wb") as write:
            while piece := read.read(_PIECE):
                write.write(piece)
            write.flush()
            os.fsync(write.fileno())
    return time.perf_counter() - start


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
