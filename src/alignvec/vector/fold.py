"""Fold to a checkpoint: theta + sum_k lambda_k tau_k, from disk to disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from alignvec.base.checkpoint import CheckpointWeights
from alignvec.base.dtypes import parse_dtype
from alignvec.base.source import base_name, find_base
from alignvec.base.weights import Weights
from alignvec.files import atomic_folder, read_object, write_text
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import Weighted, folded
from alignvec.vector.merge import TASK_ARITHMETIC, Merge
from alignvec.vector.stream import Output, work_key, write_tensors

WeightedVectors = Sequence[tuple[AlignmentVector, float]]
# What makes a folder of weights a model; code (.py) is never taken along.
_CONFIG_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*")


def fold(
    base: str | Path,
    weighted: WeightedVectors,
    out: Path,
    dtype: str | None = None,
    overwrite: bool = False,
    check_base: bool = True,
    merge: Merge = TASK_ARITHMETIC,
) -> Path:
    """Write the checkpoint of a base with its knobs turned; nothing is ever held whole.

    Sums in float32 and rounds once to the dtype that is asked for. Config, tokenizer, generation
    config and chat template are the base's. A tied tensor is written once. Killed and started
    again with the same arguments, it goes on where it was.

    Args:
        base: "embedded", folder, GGUF file or hub id.
        weighted: vectors with their strengths.
        dtype: float32, bfloat16 or float16; by default that of each tensor of the base.
        check_base: refuse a vector whose base has another fingerprint.
        merge: how the vectors make one change; by default their sum.

    Raises:
        AlignvecError: a vector does not fit, `out` is taken, or a result is not finite.
    """
    chosen = parse_dtype(dtype)
    folder = find_base(str(base))
    weights = CheckpointWeights(folder)
    for vector, _ in weighted:
        vector.check_base(weights, base_name(str(base)), check_base)
    outputs = {name: _output(weights, name, weighted, chosen, merge) for name in weights}
    key = work_key(
        weights.fingerprint,
        str(chosen),
        [(vector.fingerprint(), by) for vector, by in weighted],
        asdict(merge),
    )
    with atomic_folder(out, overwrite, key) as partial:
        write_tensors(partial, outputs, "folding")
        _copy_config(folder, partial)
        if chosen is not None:
            _set_config_dtype(partial / "config.json", chosen)
    return out


def deltas_of(name: str, weighted: WeightedVectors) -> Weighted:
    """The deltas of one weight with their strengths; a strength of zero leaves its vector out."""
    return [
        (vector.deltas[name], strength)
        for vector, strength in weighted
        if strength and name in vector.deltas
    ]


def _output(
    weights: Weights,
    name: str,
    weighted: WeightedVectors,
    dtype: torch.dtype | None,
    merge: Merge,
) -> Output:
    deltas = merge(name, deltas_of(name, weighted))

    def rows(start: int, stop: int) -> torch.Tensor:
        theta = weights.rows(name, start, stop)
        return folded(theta, deltas, start, stop) if deltas else theta

    floating = weights.dtype(name).is_floating_point
    stored = dtype if dtype is not None and floating else weights.dtype(name)
    return Output(weights.shape(name), stored, rows)


def _copy_config(base: Path, out: Path) -> None:
    for pattern in _CONFIG_FILES:
        for file in base.glob(pattern):
            weights_index = file.name.endswith(".index.json")
            if file.is_file() and not weights_index and not (out / file.name).exists():
                shutil.copyfile(file, out / file.name)


def _set_config_dtype(config_file: Path, dtype: torch.dtype) -> None:
    if config_file.exists():
        config = read_object(config_file)
        key = "dtype" if "dtype" in config else "torch_dtype"
        config[key] = str(dtype).removeprefix("torch.")
        write_text(config_file, json.dumps(config, indent=2) + "\n")  # some hold Infinity
