"""Knobs on vLLM beside vLLM's own ways, in one run, by turns.

    python benchmarks/vllm_speed.py -o benchmarks/results/vllm_speed.json     # where vLLM is

Each contestant is an engine in a process of its own, started anew each round; requests have prompts
of one length and answers of one length, and come all at once. The vectors are random, of rank 16:
what they say takes as long as anything else.

    plain       no adapters
    one LoRA    vLLM's own, the same for all requests
    16 LoRAs    vLLM's own, a request has one of them
    knobs       three vectors, every request with a setting of its own
    half        the same engine, every other request without knobs
    none        the same engine, no request with knobs
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from alignvec.base.identity import base_id
from alignvec.base.model_weights import ModelWeights
from alignvec.base.source import find_folder
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import LowRank
from provenance import made

KNOBS = ("medical", "financial", "legal")
RANK = 16
ENGINES = {
    "plain": ["plain"],
    "one LoRA": ["one LoRA"],
    "16 LoRAs": ["16 LoRAs"],
    "knobs": ["knobs", "half", "none"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--prompt", type=int, default=64, help="Tokens.")
    parser.add_argument("--tokens", type=int, default=64, help="Of an answer.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--engine", nargs=2, metavar=("NAME", "VECTORS"), help="One alone.")
    options = parser.parse_args()
    if options.engine:
        engine, folder = options.engine
        print("\n" + json.dumps(_times(engine, folder, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_vectors(options.base, Path(folder))
        found: dict[str, list[dict[str, Any]]] = {}
        for _ in range(options.rounds):
            for engine in ENGINES:
                for name, times in _run(engine, folder).items():
                    found.setdefault(name, []).append(times)
    result = {
        "made": made(),
        "base": options.base,
        "dtype": options.dtype,
        "rank": RANK,
        "prompt": options.prompt,
        "tokens": options.tokens,
        "rounds": options.rounds,
        "runs": {
            name: {
                batch: {
                    key: statistics.median(run[batch][key] for run in runs)
                    for key in ("tokens_per_second", "first_token")
                }
                for batch in runs[0]
            }
            for name, runs in found.items()
        },
    }
    for name, batches in result["runs"].items():
        line = ", ".join(f"{b}: {r['tokens_per_second']:.0f}" for b, r in batches.items())
        print(f"{name}: {line}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def _write_vectors(base: str, folder: Path) -> None:
    weights = ModelWeights(find_folder(base))
    chance = torch.Generator().manual_seed(0)
    for number in range(16):  # three are the knobs, all of them the adapters
        deltas = {}
        for name in weights:
            shape = weights.shape(name)
            if name.endswith("_proj.weight"):
                a = torch.randn(RANK, shape[1], generator=chance) / shape[1] ** 0.5
                b = torch.randn(shape[0], RANK, generator=chance) / 100
                deltas[name] = LowRank(a.bfloat16(), b.bfloat16())
        vector = AlignmentVector(deltas, base_id(base, weights), name=str(number))
        vector.save_pretrained(folder / str(number))


def _run(engine: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, *sys.argv, "--engine", engine, folder]
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    environment.pop("ALIGNVEC_VECTORS", None)
    if engine == "knobs":
        environment["ALIGNVEC_VECTORS"] = ",".join(
            f"{knob}={folder}/{number}" for number, knob in enumerate(KNOBS)
        )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine}: {done.stderr[-2000:]}")
    times: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return times


def _times(engine: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Of each contestant that this engine is, by batch."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    loras = {"one LoRA": 1, "16 LoRAs": 16}.get(engine, 0)
    adapters: dict[str, Any] = {"enable_lora": True, "max_loras": loras, "max_lora_rank": RANK}
    llm = LLM(
        str(find_folder(options.base)),
        dtype=options.dtype,
        max_model_len=2 * (options.prompt + options.tokens),
        max_num_seqs=max(options.batches),
        gpu_memory_utilization=0.3,
        enable_prefix_caching=False,
        disable_log_stats=False,
        **(adapters if loras else {}),
    )
    found: dict[str, Any] = {}
    for name in ENGINES[engine]:
        found[name] = {}
        for batch in options.batches:
            prompts = [
                {
                    "prompt_token_ids": [
                        (7 * row + place) % 1000 + 10 for place in range(options.prompt)
                    ]
                }
                for row in range(batch)
            ]
            params = [
                SamplingParams(
                    temperature=0,
                    max_tokens=options.tokens,
                    ignore_eos=True,
                    extra_args=_knobs(name, row),
                )
                for row in range(batch)
            ]
            requests = (
                [
                    LoRARequest(str(row % loras), row % loras + 1, f"{folder}/{row % loras}")
                    for row in range(batch)
                ]
                if loras
                else None
            )
            llm.generate(prompts, params, lora_request=requests, use_tqdm=False)  # warm
            began = time.perf_counter()
            answers = llm.generate(prompts, params, lora_request=requests, use_tqdm=False)
            seconds = time.perf_counter() - began
            firsts = [one.metrics.first_token_latency for one in answers if one.metrics]
            found[name][str(batch)] = {
                "tokens_per_second": batch * options.tokens / seconds,
                "first_token": statistics.median(firsts),
            }
    return found


def _knobs(name: str, row: int) -> dict[str, Any] | None:
    if name not in ("knobs", "half") or (name == "half" and row % 2):
        return None
    strengths = {
        knob: 0.1 * ((row + 1) * step % 19 - 9) for knob, step in zip(KNOBS, (1, 5, 7), strict=True)
    }
    return {"knobs": strengths}


if __name__ == "__main__":
    main()
