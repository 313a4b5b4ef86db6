"""Fold to a checkpoint: theta + sum_k lambda_k tau_k, from disk to disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from alignvec.base.checkpoint import copy_config
from alignvec.base.dtypes import parse_dtype
from alignvec.base.model_weights import ModelWeights
from alignvec.base.source import base_name, find_base
from alignvec.base.weights import Weights
from alignvec.base.wrappers import unwrapped
from alignvec.files import atomic_folder, read_object, write_text
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import Weighted, folded
from alignvec.vector.merge import TASK_ARITHMETIC, Merge
from alignvec.vector.stream import Output, work_key, write_tensors

WeightedVectors = Sequence[tuple[AlignmentVector, float]]


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
    weights = ModelWeights(folder)
    fitting = [
        (vector.fitted(weights, base_name(str(base)), check_base), strength)
        for vector, strength in weighted
    ]
    changes: dict[str, object] = {}
    if chosen is not None:
        changes["dtype"] = str(chosen).removeprefix("torch.")
    # What to write -> where it is in the files, and the weight's name.
    names: dict[str, tuple[str | None, str]] = {
        unwrapped(key): (key, name) for key, name in weights.name_of.items()
    }
    if apart := _untied(weights, fitting):
        changes["tie_word_embeddings"] = False
        there = {name for _, name in names.values()}
        names |= {name: (None, name) for name in apart if name not in there}
    outputs = {
        key: _output(weights, source, name, fitting, chosen, merge)
        for key, (source, name) in names.items()
    }
    key = work_key(
        weights.state,
        str(chosen),
        [(vector.origin(), by) for vector, by in fitting],
        asdict(merge),
    )
    with atomic_folder(out, overwrite, key) as partial:
        write_tensors(partial, outputs, "folding")
        copy_config(folder, partial)
        _change_config(partial / "config.json", changes)
    return out


def deltas_of(name: str, weighted: WeightedVectors, tied: Mapping[str, str]) -> Weighted:
    """The deltas of one weight with their strengths; a strength of zero leaves its vector out.

    Args:
        tied: see `Weights`. A tied weight moves with the one that it shares; what a vector has
            under its own name is on top.
    """
    moved = (tied[name], name) if name in tied else (name,)
    return [
        (vector.deltas[one], strength)
        for vector, strength in weighted
        for one in moved
        if strength and one in vector.deltas
    ]


def _untied(weights: Weights, weighted: WeightedVectors) -> set[str]:
    """The names of tied weights that part, each with the one that it shared."""
    apart = {
        name for vector, by in weighted if by for name in vector.deltas if name in weights.tied
    }
    return apart | {weights.tied[name] for name in apart}


def _output(
    weights: ModelWeights,
    stored: str | None,
    name: str,
    weighted: WeightedVectors,
    dtype: torch.dtype | None,
    merge: Merge,
) -> Output:
    """Args: stored: the weight's name in the files; None of one that they do not have apart."""
    source, read = (weights, name) if stored is None else (weights.stored, stored)
    deltas = merge(name, deltas_of(name, weighted, weights.tied))

    def rows(start: int, stop: int) -> torch.Tensor:
        theta = source.rows(read, start, stop)
        return folded(theta, deltas, start, stop) if deltas else theta

    floating = source.dtype(read).is_floating_point
    kept = dtype if dtype is not None and floating else source.dtype(read)
    return Output(source.shape(read), kept, rows)


def _change_config(config_file: Path, changes: Mapping[str, object]) -> None:
    if not config_file.exists():
        return
    config = read_object(config_file)
    changed = {**config, **changes}
    if "dtype" in changes and "dtype" not in config:
        changed["torch_dtype"] = changed.pop("dtype")
    changed.pop("transformers_weights", None)  # the name of a file that is not there
    if changed != config:
        write_text(config_file, json.dumps(changed, indent=2) + "\n")  # some hold Infinity
