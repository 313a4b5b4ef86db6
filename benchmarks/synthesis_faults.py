"""10,000 records, 30,000 requests, against a server that fails in every way; killed at random.

    python benchmarks/synthesis_faults.py -o benchmarks/results/synthesis_faults.json

`alignvec data responses` runs against `tests/data/fault_server.py` on the same machine: 10% rate
limits, 5% server errors, and hangs, dropped connections, bodies that are cut, malformed, empty or
in another encoding. First it is killed (-9) `--kills` times at random moments, then it runs to its
end. Counted are records, texts that the server delivered whole, and those delivered twice (which
somebody would have paid for). A second run without faults and kills gives the throughput.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provenance import made

SERVER = Path(__file__).parents[1] / "tests" / "data" / "fault_server.py"
FAULTS = ("429=.1", "500=.05", "hang=.002", "truncated=.02", "malformed=.02", "empty=.02",
          "latin1=.02", "closed=.02")  # fmt: skip
LEVELS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()
    result = {
        "records": options.records,
        "concurrency": options.concurrency,
        "faults": dict(fault.split("=") for fault in FAULTS),
        "with faults and kills": measured(options, FAULTS, options.kills),
        "without": measured(options, (), 0),
    }
    options.out.write_text(json.dumps({**result, "made": made()}, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measured(options: argparse.Namespace, faults: tuple[str, ...], kills: int) -> dict[str, Any]:
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder, serving(*faults) as url:
        queries, out = Path(folder) / "queries.jsonl", Path(folder) / "records.jsonl"
        with queries.open("w") as file:
            for number in range(options.records):
                query = f"Case {number}: is this reading of {number % 211} any reason to worry?"
                line = {"id": f"q{number}", "domain": "medical", "query": query}
                file.write(json.dumps(line) + "\n")
        command = [
            sys.executable, "-m", "alignvec", "-q", "data", "responses", str(queries),
            "--spectrum", "medical", "--endpoint", url, "--model", "m", "--timeout", "5",
            "--concurrency", str(options.concurrency), "-o", str(out),
        ]  # fmt: skip
        start, peak = time.perf_counter(), 0
        for kill in range(kills + 1):
            process = subprocess.Popen(command)
            until = len(stats(url)["delivered"]) + chance.randrange(500, 4000)
            while process.poll() is None:
                peak = max(peak, resident(process.pid))
                if kill < kills and len(stats(url)["delivered"]) >= until:
                    process.kill()
                time.sleep(0.5)
        seconds, found = time.perf_counter() - start, stats(url)
        delivered = found["delivered"]
        written = [json.loads(line)["id"] for line in out.read_text().splitlines()]
        return {
            "kills": kills,
            "complete": written == [f"q{number}" for number in range(options.records)],
            "texts": len(delivered),
            "delivered_twice": sum(delivered.values()) - len(delivered),
            "in_flight_at_the_kills_at_most": kills * options.concurrency,
            "faults": {kind: count for kind, count in found["faults"].items() if kind},
            "seconds": round(seconds, 1),
            "texts_per_second": round(len(delivered) / seconds, 1),
            "peak_mb": round(peak / 1e6),
        }


@contextmanager
def serving(*faults: str) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, str(SERVER), "0", *faults], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url.replace("/v1", "/stats")) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
