"""What every result says of itself: the command that made it, and on what."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def made() -> dict[str, Any]:
    """The command line, the machine, the versions and the commit of this run."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()
    return {
        "command": shlex.join(["python", *sys.argv]),
        "on": f"{device}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("alignvec", "torch", "transformers")},
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
    }


def _cpu() -> str:
    """The processor's name and whether it computes in bfloat16."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            name = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    has = torch.cpu._is_avx512_bf16_supported()
    return f"{name} ({'with' if has else 'without'} bfloat16 instructions)"
