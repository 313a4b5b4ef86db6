"""Alignment on few cores: alignvec's defaults against TRL's, same pairs, same base, one run.

    python benchmarks/align_speed.py -o benchmarks/results/align_speed.json

Both sides run DPO on 50 medical queries (100 pairs), one LoRA adapter of rank 16. The peer is TRL
as its examples use it: every linear layer, learning rate 2e-4, 26 steps of 8 pairs (two passes),
activation checkpointing on, reference computed beside each step. Both compute in the dtype that
alignvec picks for this machine. A TRL step is the same work each time, so the peer can be timed on
a few steps (`--peer-steps`) and is then scaled to 26, which the result says; with all 26 its
held-out rates are measured too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignvec.align import AlignSettings, align
from alignvec.base.load import load_base
from alignvec.data import LEVELS, Record, preference_pairs, read_records
from alignvec.evaluate import preference_rates, response_rows
from alignvec.knobs.model import KnobModel
from alignvec.vector import AlignmentVector
from provenance import made

ORDER = ["expert", "generic", "avoidance"]
STRENGTHS = (-2.0, 1.0, 2.0, 3.0)
STEPS = 26


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--held-out", type=int, default=30)
    parser.add_argument("--peer-steps", type=int, default=STEPS)
    options = parser.parse_args()

    train = list(read_records("builtin", domain="medical", split="train"))[: options.queries]
    held_out = list(read_records("builtin", domain="medical", split="test"))[: options.held_out]
    with tempfile.TemporaryDirectory() as scratch:
        ours = run_alignvec(train, Path(scratch) / "ours")
        ours["rates"] = held_out_rates(Path(scratch) / "ours", held_out)
        peer = run_trl(train, Path(scratch) / "peer", options.peer_steps)
        if options.peer_steps == STEPS:
            peer["rates"] = held_out_rates(Path(scratch) / "peer", held_out)
    result = {
        "queries": len(train),
        "pairs": 2 * len(train),
        "held_out": len(held_out),
        "alignvec": ours,
        "trl": peer,
        "trl_over_alignvec": round(peer["seconds_for_26_steps"] / ours["seconds"], 2),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**result, "made": made()}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def run_alignvec(train: list[Record], out: Path) -> dict[str, Any]:
    load_base("embedded")  # the conversion of the GGUF file is neither side's training
    start = time.perf_counter()
    align("embedded", list(preference_pairs(train, ORDER)), out, AlignSettings())
    seconds = time.perf_counter() - start
    steps = len(json.loads((out / "training.json").read_text())["curve"])
    return {"seconds": round(seconds, 1), "steps": steps}


def run_trl(train: list[Record], out: Path, steps: int) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    rows = [
        {
            "prompt": [{"role": "user", "content": pair.prompt}],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in preference_pairs(train, ORDER)
    ]
    start = time.perf_counter()
    base = load_base("embedded")
    config = DPOConfig(
        output_dir=str(out),
        learning_rate=2e-4,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=8,
        max_steps=steps,
        bf16=False,  # the weights have the dtype already; autocast is slow without bf16 hardware
        save_strategy="no",
        report_to="none",
        logging_steps=1,
    )
    trainer = DPOTrainer(
        model=base.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=base.tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    setup = time.perf_counter() - start
    trainer.train()
    training = time.perf_counter() - start - setup
    trainer.model.save_pretrained(out)
    return {
        "steps_run": steps,
        "seconds_run": round(setup + training, 1),
        "seconds_for_26_steps": round(setup + training * STEPS / steps, 1),
        "measured_fully": steps == STEPS,
    }


def held_out_rates(aligned: Path, records: list[Record]) -> dict[str, Any]:
    model = KnobModel.from_pretrained(
        "embedded", {"medical": AlignmentVector.extract("embedded", aligned)}
    )
    rows = response_rows(model.tokenizer, records, LEVELS)
    return {
        str(strength): asdict(preference_rates(model.set(medical=strength).model, rows, LEVELS))[
            "rate"
        ]
        for strength in STRENGTHS
    }


if __name__ == "__main__":
    main()
