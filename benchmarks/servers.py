"""The servers of serve_load.py: what starts each of them, and how each is asked for a behaviour."""

from __future__ import annotations

import argparse
import json
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from alignvec.base.identity import base_id
from alignvec.base.source import find_base
from alignvec.data import LEVELS, read_records
from alignvec.data.spectrum import read_spectrum
from alignvec.vector.alignment_vector import AlignmentVector
from gate_speed import KNOBS, load, three_vectors

HERE = Path(__file__).parent
ROWS, WAITING = 32, 64  # of our server when it is overloaded
Body = dict[str, Any]


@dataclass
class Server:
    """A contestant.

    Attributes:
        command: as it is run in the scratch folder, and recorded.
        body: number of a request -> what is asked.
    """

    name: str
    command: list[str]
    body: Callable[[int], Body]
    port: int = field(default_factory=lambda: free_port())

    @property
    def shown(self) -> str:
        """Its command line, as somebody would type it."""
        return shlex.join(self.command).replace("transformers.cli.transformers", "transformers")

    @contextmanager
    def running(self, scratch: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Start it, wait until it answers, and end it afterwards; its log is in `scratch`."""
        command = [*self.command, "--host", "127.0.0.1", "--port", str(self.port)]
        log = scratch / f"{self.name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=scratch, stdout=out, stderr=out
            )
        try:
            wait_until_healthy(self, process, log)
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()

    def load(self, numbers: Sequence[int], clients: int, seconds: float | None = None) -> Body:
        """What so many clients see who ask requests of these numbers."""
        wanted = {
            "url": f"http://127.0.0.1:{self.port}/v1/",
            "bodies": [self.body(number) for number in numbers],
            "clients": clients,
            "seconds": seconds,
        }
        done = subprocess.run(
            [sys.executable, str(HERE / "load.py")],
            input=json.dumps(wanted), stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        seen: Body = json.loads(done.stdout)
        return seen


def prepare(
    options: argparse.Namespace, scratch: Path
) -> tuple[Any, Any, list[str], dict[str, AlignmentVector]]:
    """Model, tokenizer, questions, vectors; model and vectors as folders in `scratch`, too."""
    model, tokenizer, _ = load(options.shape, options.blocks)
    if options.shape == "embedded":
        (scratch / "base").symlink_to(find_base("embedded"))
    else:
        model.save_pretrained(scratch / "base")
        tokenizer.save_pretrained(scratch / "base")
    on_disk = base_id(str(scratch / "base"))
    vectors = three_vectors(model, options.vector)
    for knob, vector in vectors.items():
        if not (options.vector and knob == KNOBS[0]):
            vectors[knob] = AlignmentVector(vector.deltas, on_disk, knob)
        vectors[knob].save_pretrained(scratch / knob)
    records = read_records("builtin", LEVELS, "medical", "test")
    return model, tokenizer, [record.query for record in records], vectors


def contestants(options: argparse.Namespace, model: Any, questions: list[str]) -> dict[str, Server]:
    """Name -> server, each with its way to ask for a behaviour."""
    levels = [level.instruction for level in read_spectrum("medical").levels]
    base = {"temperature": 0, "max_tokens": options.tokens}
    name = "embedded" if options.shape == "embedded" else "base"

    def plain(number: int) -> Body:
        asked = {"role": "user", "content": questions[number % len(questions)]}
        return {
            **base,
            "model": name,
            "messages": [asked],
            "stream_options": {"include_usage": True},
        }

    def turned(number: int) -> Body:
        return {**plain(number), "knobs": setting(number)}

    def told(number: int) -> Body:
        level = {"role": "system", "content": levels[number % len(levels)]}
        return {**base, "model": "base", "messages": [level, *plain(number)["messages"]]}

    ours = ["alignvec", "serve", name]
    vectors = [word for knob in KNOBS for word in ("--vector", f"{knob}={knob}")]
    queue = ["--max-rows", str(ROWS), "--max-waiting", str(WAITING)] if options.overload else []
    theirs = ["transformers.cli.transformers", "serve", "base"]
    theirs += ["--dtype", str(model.dtype).removeprefix("torch.")]
    servers = (
        Server("alignvec", [*ours, *vectors, *queue], turned),
        Server("alignvec bare", ours, plain),
        Server("transformers", theirs, told),
        Server("transformers batched", [*theirs, "--continuous-batching"], told),
    )
    return {one.name: one for one in servers if options.only is None or one.name in options.only}


def setting(number: int) -> dict[str, float]:
    """The setting of a request; all differ."""
    rng = random.Random(number)
    return {knob: round(rng.uniform(-1, 1), 4) for knob in KNOBS}


def wait_until_healthy(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns once it answers; exits with the end of its log if it never does."""
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{server.port}/health", trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.5)
    sys.exit(f"{server.name} does not answer:\n{log.read_text(errors='replace')[-2000:]}")


def resident(process: int) -> float:
    """Megabytes of memory that a process holds."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (held,) = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return round(int(held) / 1024, 1)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
