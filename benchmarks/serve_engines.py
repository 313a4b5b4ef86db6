"""What the server's engine could ride on: three ways to share forward passes, in one run.

    python benchmarks/serve_engines.py -o benchmarks/results/serve_engines.json

The same requests, with prompts and answers of different lengths, come one after the other while the
first are being answered, each with a setting of its own over three knobs (random vectors of rank
16). The contestants take turns; the figures are of all rounds.

    joined           alignvec.serve.engine: rows join and leave between steps
    joined bare      the same, no knobs
    micro-batches    whoever waits is one batch of KnobModel.generate, and is answered at its end
    manager          transformers' ContinuousBatchingManager, no knobs
    manager gated    the same with the gate on, one setting for all: it has no rows to tell apart
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import ContinuousBatchingConfig, GenerationConfig

from alignvec.knobs.model import KnobModel
from alignvec.serve.engine import Engine
from alignvec.serve.request import Request
from alignvec.serve.sampling import Sampling
from gate_speed import KNOBS, SHAPES, device_name, load, strengths, three_vectors
from provenance import made


@dataclass
class Asked:
    """A request: its prompt, how long its answer is, its setting, and when it comes (seconds)."""

    prompt: str
    tokens: list[int]
    length: int
    setting: dict[str, float]
    at: float


# Seconds that all took, and of each from when it came to its first token.
Run = Callable[[list[Asked]], tuple[float, list[float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--shape", choices=["embedded", *SHAPES], default="embedded")
    parser.add_argument("--blocks", type=int, default=4, help="Of a shape of random weights.")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--every", type=float, default=0.1, help="Seconds between two of them.")
    parser.add_argument("--longest", type=int, default=96, help="Tokens of an answer.")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model, tokenizer, prompts = alone(load, options.shape, options.blocks)
    vectors = alone(three_vectors, model, None)
    knobs = alone(KnobModel, model, tokenizer, vectors, False, "gate")
    chance = random.Random(0)
    asked = [
        Asked(
            prompt := prompts[row % len(prompts)],
            tokenizer(prompt)["input_ids"],
            chance.randint(options.longest // 6, options.longest),
            setting,
            row * options.every,
        )
        for row, setting in enumerate(strengths(options.requests))
    ]
    runs: dict[str, Run] = {
        "joined": lambda some: asyncio.run(joined(knobs, some)),
        "joined bare": lambda some: asyncio.run(joined(knobs, some, bare=True)),
        "micro-batches": lambda some: micro_batches(knobs, some),
        "manager": lambda some: manager(knobs, some, bare=True),
        "manager gated": lambda some: manager(knobs, some),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    firsts: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.rounds + 1):
        for name, run in runs.items():
            took, found = alone(run, asked if turn else asked[:4])  # first a warm-up
            if turn:
                seconds[name].append(took)
                firsts[name] += found
                print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    written = sum(one.length for one in asked)
    result = {
        "model": options.shape,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device_name(model),
        "requests": options.requests,
        "every": options.every,
        "tokens": written,
        "rounds": options.rounds,
        "engines": {
            name: {
                "tokens_per_second": round(written / statistics.median(seconds[name]), 1),
                "first_p50": round(float(np.percentile(firsts[name], 50)), 3),
                "first_p99": round(float(np.percentile(firsts[name], 99)), 3),
            }
            for name in runs
        },
        "made": made(),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["engines"], indent=2))


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """In a thread that ends, as `alignvec serve` loads its model: helpers of OpenMP that stay
    behind would slow the next one.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work, *arguments).result()


async def joined(
    knobs: KnobModel, asked: list[Asked], bare: bool = False
) -> tuple[float, list[float]]:
    """Through our engine."""
    engine = Engine(knobs, max_rows=len(asked))
    await engine.start()
    unending = {knobs.tokenizer.eos_token_id: -1e4}

    async def one(request: Asked) -> float:
        await asyncio.sleep(request.at)
        sampling = Sampling(request.length, temperature=0, logit_bias=unending)
        start, first = time.perf_counter(), 0.0
        setting = dict.fromkeys(KNOBS, 0.0) if bare else request.setting
        async for _ in engine.generate(Request(request.tokens, setting, sampling)):
            first = first or time.perf_counter() - start
        return first

    start = time.perf_counter()
    found = await asyncio.gather(*map(one, asked))
    took = time.perf_counter() - start
    await engine.stop()
    return took, list(found)


def micro_batches(knobs: KnobModel, asked: list[Asked]) -> tuple[float, list[float]]:
    """Whoever has come when a batch ends is the next one."""
    start, now, firsts, waiting = time.perf_counter(), 0.0, [], list(asked)
    while waiting:
        now = time.perf_counter() - start
        batch = [one for one in waiting if one.at <= now]
        if not batch:
            time.sleep(max(0.0, waiting[0].at - now))
            continue
        longest = max(one.length for one in batch)
        knobs.generate(
            [one.prompt for one in batch], [one.setting for one in batch],
            max_new_tokens=longest, min_new_tokens=longest,
        )  # fmt: skip
        now = time.perf_counter() - start
        firsts += [now - one.at for one in batch]
        waiting = waiting[len(batch) :]
    return now, firsts


def manager(knobs: KnobModel, asked: list[Asked], bare: bool = False) -> tuple[float, list[float]]:
    """Through transformers' own continuous batching."""
    model: Any = knobs.model
    attention = model.config._attn_implementation
    told = GenerationConfig(do_sample=False, eos_token_id=-1)
    one_setting = knobs.gate.tensor([asked[0].setting])
    came: dict[str, float] = {}
    firsts: dict[str, float] = {}
    with (
        knobs.gate.rows(None if bare else one_setting),
        model.continuous_batching_context_manager(
            told, continuous_batching_config=ContinuousBatchingConfig(), warmup=False
        ) as running,
    ):
        start, waiting, open_requests = time.perf_counter(), list(asked), 0
        while waiting or open_requests:
            while waiting and waiting[0].at <= time.perf_counter() - start:
                one = waiting.pop(0)
                name = running.add_request(one.tokens, max_new_tokens=one.length, streaming=True)
                came[name] = start + one.at
                open_requests += 1
            output = running.get_result(timeout=0.01)
            if output is None:
                continue
            if output.error:
                raise RuntimeError(output.error)
            firsts.setdefault(output.request_id, time.perf_counter())
            open_requests -= output.is_finished()
        took = time.perf_counter() - start
    model.set_attn_implementation(attention)
    return took, [firsts[name] - at for name, at in came.items()]


if __name__ == "__main__":
    main()
