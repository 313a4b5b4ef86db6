"""Three vectors added to a 1.1B model: alignvec fold against mergekit's task_arithmetic, one run.

    python benchmarks/merge_speed.py -o benchmarks/results/merge_speed.json \
        --mergekit OTHER_VENV/bin/mergekit-yaml --scratch FOLDER

The model is a Llama of 1.1B parameters (22 layers, hidden size 2048) in bfloat16 with random
weights. mergekit gets the three aligned models, alignvec the three vectors (full, bfloat16), and
once more vectors of rank 16. Beside them: reading all inputs, and copying the output. Every
command is a process of its own, timed `--repeat` times in turn; peak memory is its resident
maximum. mergekit lives in its own environment, because its requirements differ. Needs 20 GB of
disk; files in the page cache, as after a download.
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
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path
from typing import Any

from provenance import made

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
STRENGTHS = {"a": 0.7, "b": -0.3, "c": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--mergekit", required=True, help="The mergekit-yaml to run.")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    scratch = options.scratch
    apart(prepare, scratch)
    alignvec = [str(Path(sys.executable).with_name("alignvec")), "-q"]
    setting = ",".join(f"{knob}={by}" for knob, by in STRENGTHS.items())

    def fold(kind: str) -> list[str]:
        vectors = [f"--vector={knob}={scratch}/{kind}-{knob}" for knob in STRENGTHS]
        out = ["-o", f"{scratch}/out-{kind}"]
        return [*alignvec, "fold", f"{scratch}/base", *vectors, "--set", setting, *out]

    def weights(*folders: str) -> list[str]:
        return [f"{scratch}/{folder}/model.safetensors" for folder in ("base", *folders)]

    full = weights("full-a", "full-b", "full-c")
    # name -> the command and what it reads
    commands: dict[str, tuple[list[str], list[str]]] = {
        "mergekit": ([options.mergekit, f"{scratch}/merge.yaml", f"{scratch}/out-mergekit",
                      "--allow-crimes"], weights("a", "b", "c")),
        "alignvec full": (fold("full"), full),
        "alignvec rank 16": (fold("rank16"), weights()),
        "read inputs": (["sh", "-c", "cat " + " ".join(full) + " > /dev/null"], full),
        "copy output": (["cp", f"{scratch}/out-full/model.safetensors", f"{scratch}/copy"],
                        [f"{scratch}/out-full/model.safetensors"]),
    }  # fmt: skip
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(options.repeat):
        for folder in scratch.glob("out-*"):
            shutil.rmtree(folder)
        (scratch / "copy").unlink(missing_ok=True)
        for name, (command, reads) in commands.items():
            settle(scratch, reads)
            runs[name].append(timed(command))
            print(name, *(f"{value:.2f}" for value in runs[name][-1]), flush=True)
    seconds = {name: statistics.median(s for s, _ in found) for name, found in runs.items()}
    memory = {name: max(m for _, m in found) for name, found in runs.items()}
    plain = seconds["read inputs"] + seconds["copy output"]
    result = {
        "seconds": seconds,
        "peak_gb": memory,
        "runs": runs,
        "mergekit_over_alignvec_seconds": seconds["mergekit"] / seconds["alignvec full"],
        "alignvec_over_mergekit_memory": memory["alignvec full"] / memory["mergekit"],
        "alignvec_over_read_and_copy": seconds["alignvec full"] / plain,
        "largest_difference": difference(scratch),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**result, "made": made()}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def apart(work: Callable[..., None], *arguments: Any) -> None:
    """Do `work` in a process of its own.

    A command's peak memory counts from what its parent holds at the fork, so this one stays small.
    """
    process = Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{work.__name__} failed")


def settle(scratch: Path, reads: list[str]) -> None:
    """The same start for every command, whatever ran before it.

    What others wrote is flushed now, and the page cache holds what the command will read and
    nothing else of ours. On a virtual machine, memory that was not in use lately has to come from
    the host first, so some is used.
    """
    os.sync()
    for file in scratch.rglob("*.safetensors"):
        with file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    subprocess.run([sys.executable, "-c", f"b'x' * {4 * 2**30}"], check=True)
    subprocess.run(["cat", *reads], stdout=subprocess.DEVNULL, check=True)


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident gigabytes of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{command[0]} failed:\n{errors.decode()[-2000:]}")
    return seconds, usage.ru_maxrss / 2**20


def prepare(scratch: Path) -> None:
    """Base, three aligned models, their vectors, and the same at rank 16; kept between runs."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from alignvec.base.identity import base_id
    from alignvec.vector.alignment_vector import AlignmentVector
    from alignvec.vector.delta import LowRank

    def once(folder: Path, make: Callable[[], Any]) -> None:
        if not folder.exists():
            make()

    def checkpoint(name: str, seed: int) -> None:
        torch.manual_seed(0)
        config = AutoConfig.for_model(**CONFIG)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        if seed:
            torch.manual_seed(seed)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(0.002 * torch.randn_like(weight))
        model.save_pretrained(scratch / name, max_shard_size="10GB")

    def low_rank(knob: str) -> None:
        full = AlignmentVector.from_pretrained(scratch / f"full-{knob}")
        deltas = {
            name: LowRank(0.01 * torch.randn(16, delta.shape[1]), torch.randn(delta.shape[0], 16))
            for name, delta in full.deltas.items()
            if "proj" in name
        }
        vector = AlignmentVector(deltas, base_id(scratch / "base"), knob)
        vector.save_pretrained(scratch / f"rank16-{knob}")

    once(scratch / "base", lambda: checkpoint("base", 0))
    for seed, knob in enumerate(STRENGTHS, start=1):
        once(scratch / knob, lambda knob=knob, seed=seed: checkpoint(knob, seed))  # type: ignore[misc]
        once(
            scratch / f"full-{knob}",
            lambda knob=knob: AlignmentVector.extract(  # type: ignore[misc]
                scratch / "base", scratch / knob
            ).save_pretrained(scratch / f"full-{knob}", dtype="bfloat16"),
        )
        once(scratch / f"rank16-{knob}", lambda knob=knob: low_rank(knob))  # type: ignore[misc]
    models = "".join(
        f"  - model: {scratch}/{knob}\n    parameters:\n      weight: {by}\n"
        for knob, by in STRENGTHS.items()
    )
    (scratch / "merge.yaml").write_text(
        f"merge_method: task_arithmetic\nbase_model: {scratch}/base\nmodels:\n{models}"
        "dtype: bfloat16\n"
    )


def difference(scratch: Path) -> dict[str, float]:
    """Between the two results: the largest in units of bfloat16's last place, and the mean."""
    from alignvec.base.checkpoint import CheckpointWeights
    from alignvec.vector.delta import parts

    ours, theirs = (CheckpointWeights(scratch / f"out-{n}") for n in ("full", "mergekit"))
    assert set(ours) == set(theirs)
    largest = total = count = 0.0
    for name in ours:
        for start, stop in parts(ours.shape(name)):
            a, b = (weights.rows(name, start, stop).float() for weights in (ours, theirs))
            scale = a.abs().maximum(b.abs()).clamp(min=1e-3)  # near zero the sums cancel
            places = (a - b).abs() / (scale * 2**-8)
            largest = max(largest, float(places.max()))
            total, count = total + float(places.sum()), count + places.numel()
    return {"last_places": largest, "mean_last_places": total / count}


if __name__ == "__main__":
    main()
