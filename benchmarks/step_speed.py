"""A step of training: one knob, three knobs side by side, and TRL's own, in one run.

    python benchmarks/step_speed.py -o benchmarks/results/step_speed.json
    python benchmarks/step_speed.py -o step_speed_7b.json --shape 7b --blocks 8

Every contestant takes the same pairs of the built-in set, `--pairs` a step. They take turns, so
that a machine whose speed drifts is as slow for one as for the other; ratios are medians over the
rounds, the first step of each turn left out. TRL runs without its reference (it is computed
before), in the dtype and on the layers that alignvec takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from alignvec.align.bank import Bank
from alignvec.align.curriculum import pairs_along
from alignvec.align.pairs import pairs_dataset, token_pairs
from alignvec.align.trainer import SharedPromptTrainer, TurnedPairs
from alignvec.data import LEVELS, read_records
from alignvec.data.line import spaced
from alignvec.data.pairs import PreferencePair
from gate_speed import SHAPES, load
from provenance import made

DOMAINS = ("medical", "financial", "legal")
RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--shape", choices=["embedded", *SHAPES], default="embedded")
    parser.add_argument("--blocks", type=int, default=4, help="Of the 7B shape.")
    parser.add_argument("--pairs", type=int, default=8, help="A step.")
    parser.add_argument("--steps", type=int, default=4, help="A turn, the first not counted.")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    for round_number in range(options.rounds):
        for name in ("one knob", "three knobs", "trl"):
            took = turn(name, options, round_number)
            seconds.setdefault(name, []).append(took)
            print(f"{name}: {took:.2f} s a step", flush=True)

    def against(name: str, other: str) -> float:
        pairs = zip(seconds[name], seconds[other], strict=True)
        return round(statistics.median(one / two for one, two in pairs), 3)

    result = {
        "made": made(),
        "shape": options.shape,
        "pairs": options.pairs,
        "rounds": options.rounds,
        "seconds": {name: round(statistics.median(s), 3) for name, s in seconds.items()},
        "three_knobs_over_one": against("three knobs", "one knob"),
        "trl_over_one_knob": against("trl", "one knob"),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def turn(name: str, options: argparse.Namespace, seed: int) -> float:
    """Median seconds of a step."""
    model, tokenizer, _ = load(options.shape, options.blocks)
    knobs = DOMAINS if name == "three knobs" else DOMAINS[:1]
    records = {knob: list(read_records("builtin", LEVELS, knob, "train")) for knob in knobs}
    pairs = pairs_along(records, spaced(LEVELS), 1.0, seed, share=0.0)
    pairs = pairs[: options.pairs * options.steps]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        shared: dict[str, Any] = {
            "model": model,
            "args": DPOConfig(
                output_dir=folder, per_device_train_batch_size=options.pairs, bf16=False,
                gradient_checkpointing=False, report_to="none", max_steps=options.steps,
                save_strategy="no", train_sampling_strategy="sequential",
                precompute_ref_log_probs=name == "trl", use_cpu=model.device.type == "cpu",
            ),
            "processing_class": tokenizer,
            "peft_config": adapter(model, RANK * len(knobs)),
            "callbacks": [clock],
        }  # fmt: skip
        if name == "trl":
            trainer = DPOTrainer(train_dataset=as_messages(pairs), **shared)
        else:
            tokens = pairs_dataset(token_pairs(pairs, tokenizer), 0, Path(folder))
            collator = TurnedPairs(tokenizer.pad_token_id, 1024)
            trainer = SharedPromptTrainer(
                "simpo", 1.5, 1.0, train_dataset=tokens, data_collator=collator, **shared
            )
            trainer.bank = Bank(trainer.model, knobs, [RANK] * len(knobs))
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train()
    return statistics.median(clock.seconds[1:])


def as_messages(pairs: list[PreferencePair]) -> Dataset:
    """What the peer makes its tokens from."""

    def said(role: str, text: Any) -> list[dict[str, Any]]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": said("user", pair.prompt),
            "chosen": said("assistant", pair.chosen),
            "rejected": said("assistant", pair.rejected),
        }
        for pair in pairs
    ]
    return Dataset.from_list(rows)


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._synchronise()
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._synchronise()
        self.seconds.append(time.perf_counter() - self._start)

    def _synchronise(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def adapter(model: Any, rank: int) -> LoraConfig:
    depth = model.config.num_hidden_layers
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=sorted(linear),
        layers_to_transform=list(range(round(depth / 4), depth)),
        task_type="CAUSAL_LM",
    )


if __name__ == "__main__":
    main()
