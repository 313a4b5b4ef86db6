"""Full-weight training on all GPUs of a machine: a step of its own, in processes of its own.

A study is one process. Where it trains all weights and there are several GPUs it starts one more
for each (`accelerate launch`, with the configuration that ships for FSDP) and waits for them:

    python -m alignvec.reproduce.launch JOB.json        # in each: what `align` is asked for
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from alignvec.align import AlignSettings, align
from alignvec.data.pairs import PreferencePair
from alignvec.errors import AlignvecError, NoNumbersError
from alignvec.files import read_object, work_folder, write_json

_DIVERGED = 3  # the exit status of a process whose loss is no number


def align_on_all_gpus(
    base: str,
    pairs: Sequence[PreferencePair],
    out: Path,
    settings: AlignSettings,
    device: str | None = None,
    **options: Any,
) -> Path:
    """`align`, on as many GPUs as there are and a step can be divided among.

    Raises:
        AlignvecError: see `align`; of several processes what was wrong is on stderr.
        NoNumbersError: the loss diverged.
    """
    step = settings.resolved(along=False, pairs=len(pairs)).batch_size or 1
    processes = next(n for n in range(_gpus(device), 0, -1) if step % n == 0)
    if processes == 1:
        return align(base, pairs, out, settings, device=device, **options)
    with work_folder(out.with_name(f"{out.name}-job")) as work:
        job = work / "job.json"
        asked = {"base": base, "out": str(out), "settings": asdict(settings), "options": options}
        write_json(job, asked | {"pairs": [asdict(pair) for pair in pairs]})
        command = [sys.executable, "-m", "accelerate.commands.launch", *_spread(processes)]
        status = subprocess.run([*command, "-m", __name__, str(job)], check=False).returncode
    if not any(out.rglob("*.safetensors")):
        why = f"training {out.name} in {processes} processes ended with {status}"
        raise (NoNumbersError if status == _DIVERGED else AlignvecError)(f"{why}; see above")
    return out


def _gpus(device: str | None) -> int:
    """That a training may take: all, unless it is told which."""
    return max(1, torch.cuda.device_count()) if device in (None, "cuda") else 1


def _spread(processes: int) -> list[str]:
    """Options of `accelerate launch`."""
    config = resources.files("alignvec") / "reproduce" / "accelerate" / "fsdp.yaml"
    return ["--config_file", str(config), "--num_processes", str(processes)]


def main(job: Path) -> int:
    """Do a job; the exit status."""
    told = read_object(job)
    pairs = [PreferencePair(**pair) for pair in told["pairs"]]
    try:
        align(told["base"], pairs, Path(told["out"]), AlignSettings(**told["settings"]),
              **told["options"])  # fmt: skip
    except AlignvecError as error:
        print(error, file=sys.stderr)
        return _DIVERGED if isinstance(error, NoNumbersError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
