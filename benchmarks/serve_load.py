"""`alignvec serve` under load, and what people would serve with instead, in one run.

    python benchmarks/serve_load.py -o benchmarks/results/serve_load.json [--vector medical-av]
    python benchmarks/serve_load.py -o benchmarks/results/serve_soak.json --soak 5
    python benchmarks/serve_load.py -o benchmarks/results/serve_overload.json --overload

Medical questions, streamed and greedy, each with a setting of its own over three knobs (random
vectors of rank 16; with `--vector` one is a trained one). Every server is a process of its own and
so are the clients (load.py). All servers stay up, stopped by a signal while another has its turn;
they take turns at every number of clients, so that a machine whose speed drifts is as slow for one
as for the other. Ratios are medians of the ratios round by round; p50 and p99 are of all rounds.

    alignvec             our server, three knobs, every request with a setting of its own
    alignvec bare        the same engine, no knobs
    transformers         `transformers serve` on the base, the level asked for in a system prompt
    transformers batched the same with its continuous batching
    generate             no server: KnobModel.generate on batches as large as the most clients

`--soak` is our server alone: so many minutes with the most clients, its memory each ten seconds
(Linux). `--overload`: more clients than its queue holds, until they all leave; how many were told
to come back, and how soon it answers as before. `--shape tiny --tokens 4 --rounds 1` is a trial.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from alignvec.knobs.model import KnobModel
from gate_speed import SHAPES, device_name
from provenance import made
from servers import ROWS, WAITING, Body, Server, contestants, prepare, resident, setting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--vector", help="A low-rank vector of the embedded model; else random.")
    parser.add_argument("--shape", choices=["embedded", *SHAPES], default="embedded")
    parser.add_argument("--blocks", type=int, default=2, help="Of a shape of random weights.")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--requests", type=int, default=2, help="A client and round; 8 in all at least."
    )
    parser.add_argument("--tokens", type=int, default=64, help="At most, an answer.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="Only these contestants.")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--overload", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model, tokenizer, questions, vectors = prepare(options, scratch)
        servers = contestants(options, model, questions)
        result: Body = {
            "model": options.shape,
            "vectors": "three random ones" if options.vector is None else "one trained, two random",
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": device_name(model),
            "tokens": options.tokens,
        }
        if options.soak is not None:
            result |= soak(servers["alignvec"], scratch, max(options.clients), options.soak)
        elif options.overload:
            result |= overload(servers["alignvec"], scratch)
        else:
            knobs = KnobModel(model, tokenizer, vectors, check_base=False, mode="gate")
            result |= race(options, servers, knobs, questions, scratch)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**result, "made": made()}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def race(
    options: argparse.Namespace,
    servers: dict[str, Server],
    knobs: KnobModel,
    questions: list[str],
    scratch: Path,
) -> Body:
    """Every contestant at every number of clients, in turns."""
    seen: dict[str, dict[int, list[Body]]] = {name: {} for name in servers}
    batch = max(options.clients)
    generated: list[float] = []
    with ExitStack() as stack:
        processes = {}
        for name, server in servers.items():
            processes[name] = stack.enter_context(server.running(scratch))
            check(server.load(range(batch), batch))  # warm-up
            processes[name].send_signal(signal.SIGSTOP)
        for turn in range(options.rounds):
            for clients in options.clients:
                count = max(8, options.requests * clients)
                numbers = range(turn * count, (turn + 1) * count)
                for name, server in servers.items():
                    processes[name].send_signal(signal.SIGCONT)
                    check(server.load(range(1), 1))  # its memory may have been put away
                    found = check(server.load(numbers, clients))
                    processes[name].send_signal(signal.SIGSTOP)
                    seen[name].setdefault(clients, []).append(found)
                    print(f"{name}, {clients} clients: {speed(found):.1f} tokens/s", flush=True)
            generated.append(generate(knobs, questions, batch, options.tokens, warm=not generated))
            print(f"generate, batch {batch}: {generated[-1]:.1f} tokens/s", flush=True)
    result: Body = {
        "rounds": options.rounds,
        "generate": {"batch": batch, "tokens_per_second": round(statistics.median(generated), 2)},
        "servers": {
            name: {
                "command": servers[name].shown,
                "clients": {clients: summary(runs) for clients, runs in found.items()},
            }
            for name, found in seen.items()
        },
    }
    if "alignvec" in seen:
        result["ratios"] = ratios(seen, generated, batch)
    return result


def ratios(
    seen: dict[str, dict[int, list[Body]]], generated: list[float], batch: int
) -> dict[str, Any]:
    """Of our server to each other contestant, a median over rounds."""

    def paired(other: str, clients: int, of: Callable[[Body], float]) -> float:
        pairs = zip(seen["alignvec"][clients], seen[other][clients], strict=True)
        return round(statistics.median(of(ours) / of(theirs) for ours, theirs in pairs), 3)

    found: dict[str, Any] = {
        other: {
            clients: {
                "tokens_per_second": paired(other, clients, speed),
                "first": paired(other, clients, lambda one: float(np.median(firsts([one])))),
                "between": paired(other, clients, lambda one: float(np.median(betweens([one])))),
            }
            for clients in runs
        }
        for other, runs in seen.items()
        if other != "alignvec"
    }
    pairs = zip(seen["alignvec"][batch], generated, strict=True)
    return {**found, "generate": round(statistics.median(speed(run) / g for run, g in pairs), 3)}


def generate(
    knobs: KnobModel, questions: list[str], batch: int, tokens: int, warm: bool = False
) -> float:
    """Tokens a second of one batch, a setting a row; every row writes all its tokens."""
    asked = [questions[row % len(questions)] for row in range(batch)]
    settings = [setting(row) for row in range(batch)]
    for _ in range(1 + warm):  # the first makes kernels for shapes that were not there yet
        start = time.perf_counter()
        knobs.generate(asked, settings, tokens, min_new_tokens=tokens)
        took = time.perf_counter() - start
    return batch * tokens / took


def check(found: Body) -> Body:
    """What was seen, if all was answered."""
    for one in found["requests"]:
        if one["status"] != 200:
            sys.exit(f"{one['status']}: {one['error']}")
    return found


def speed(found: Body) -> float:
    return float(sum(one["tokens"] for one in found["requests"]) / found["seconds"])


def firsts(runs: list[Body]) -> list[float]:
    """Seconds to the first text, of all requests that had one."""
    return [one["times"][0] for run in runs for one in run["requests"] if one["times"]]


def betweens(runs: list[Body]) -> list[float]:
    """Seconds between two pieces of text."""
    return [s for run in runs for one in run["requests"] for s in np.diff(one["times"]).tolist()]


def summary(runs: list[Body]) -> dict[str, Any]:
    requests = [one for run in runs for one in run["requests"]]
    return {
        "requests": len(requests),
        "tokens_an_answer": round(statistics.mean(one["tokens"] for one in requests), 1),
        "tokens_per_second": round(statistics.median(speed(run) for run in runs), 2),
        "first": percentiles(firsts(runs)),
        "between": percentiles(betweens(runs)),
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{at}": round(float(np.percentile(seconds, at)), 4) for at in (50, 99)}


def soak(server: Server, scratch: Path, clients: int, minutes: float) -> Body:
    """Our server for some minutes under all clients: what failed, and what memory it holds."""
    held: list[tuple[float, float]] = []
    over = threading.Event()
    with server.running(scratch) as process:
        start = time.perf_counter()

        def watch() -> None:
            while not over.wait(10 if held else 0):
                held.append((round(time.perf_counter() - start, 1), resident(process.pid)))

        watching = threading.Thread(target=watch)
        watching.start()
        found = server.load(range(16 * clients), clients, 60 * minutes)
        over.set()
        watching.join()
    late = [megabytes for seconds, megabytes in held if seconds >= 60] or [held[-1][1]]
    return {
        "command": server.shown,
        "clients": clients,
        "seconds": round(found["seconds"], 1),
        **outcomes(found),
        "tokens_per_second": round(speed(found), 2),
        "megabytes": held,
        "after_the_first_minute": {"first": late[0], "last": late[-1], "most": max(late)},
    }


def overload(server: Server, scratch: Path, seconds: float = 20) -> Body:
    """Our server with more clients than it has room for, and after they have gone."""

    def first() -> float:
        (one,) = check(server.load([0], 1))["requests"]
        return float(one["times"][0])

    clients = ROWS + 2 * WAITING
    with server.running(scratch):
        alone = statistics.median(first() for _ in range(5))
        found = server.load(range(4 * clients), clients, seconds)
        gone = time.perf_counter()
        while (after := first()) > 2 * alone:
            pass
        recovered = time.perf_counter() - gone
    return {
        "command": server.shown,
        "clients": clients,
        "room": ROWS + WAITING,
        "seconds": round(found["seconds"], 1),
        **outcomes(found),
        "first_alone": round(alone, 4),
        "first_afterwards": round(after, 4),
        "seconds_until_recovered": round(recovered, 2),
    }


def outcomes(found: Body) -> dict[str, Any]:
    """How many requests ended how, and what the errors said."""
    status = [one["status"] for one in found["requests"]]
    waits = [one["retry_after"] for one in found["requests"] if one["status"] == 429]
    return {
        "answered": status.count(200),
        "told_to_come_back": len(waits),
        "of_these_when": sum(wait is not None for wait in waits),
        "errors": len(status) - status.count(200) - len(waits),
        "messages": sorted(
            {one["error"] for one in found["requests"] if one["status"] not in (200, 429)}
        ),
        "dropped_by_the_client": found["dropped"],
    }


if __name__ == "__main__":
    main()
