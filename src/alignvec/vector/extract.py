"""From an aligned model to its alignment vector: a subtraction, or a LoRA adapter read as one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from alignvec.base.checkpoint import RECORD
from alignvec.base.identity import BaseId, base_id
from alignvec.base.live import open_weights
from alignvec.base.model_weights import ModelWeights
from alignvec.base.source import base_name, find_folder, is_adapter
from alignvec.base.weights import Weights
from alignvec.errors import AlignvecError
from alignvec.files import read_object
from alignvec.progress import progress
from alignvec.vector.adapter import read_adapter
from alignvec.vector.delta import Delta, Lazy, parts
from alignvec.vector.model_delta import ModelDelta

logger = logging.getLogger(__name__)

_HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")


def extract(
    base: str | Path | torch.nn.Module,
    aligned: str | Path | torch.nn.Module,
    name: str | None,
    allow_missing: Sequence[str],
) -> ModelDelta:
    """See `AlignmentVector.extract`."""
    training: dict[str, Any] = {}
    source = aligned
    if isinstance(aligned, str | Path):
        name = name or base_name(str(aligned))
        source = find_folder(str(aligned))
        record = source / RECORD
        training = read_object(record) if record.exists() else {}
    base_weights = open_weights(base)
    known = base_id(base, base_weights)
    own = BaseId(
        known.id,
        str(training.get("base_fingerprint", known.fingerprint)),
        str(training.get("base_detail", "")),
    )
    if isinstance(base, str | Path) and not own.same_as(known):
        raise AlignvecError(
            f"{aligned} was trained on another base ({training.get('base')}), not on {known.id}; "
            "extract it on its own, the vector goes on others with --any-base"
        )
    if isinstance(source, Path) and is_adapter(source):
        deltas = read_adapter(source, base_weights)
    else:
        aligned_weights = open_weights(source)
        deltas = _subtract(base_weights, aligned_weights, allow_missing)
        _tell_unread(base_weights, aligned_weights)
    calibration = training.pop("calibration", None)  # a line has its levels from training
    found = ModelDelta(
        deltas,
        known,
        name or "alignment vector",
        training,
        calibration,
        (base_weights.transposed or frozenset()) & deltas.keys(),
    )
    if not deltas:
        logger.warning("the two models are equal: a vector that changes nothing")
    live = any(not isinstance(model, str | Path) for model in (base, aligned))
    return found.in_memory() if live else found  # a live model may change later


def bank_knobs(aligned: str) -> dict[str, Path]:
    """The knobs of a bank with the folder of each one's adapter; none of anything else."""
    folder = find_folder(aligned)
    if any((folder / file).exists() for file in ("adapter_config.json", "config.json")):
        return {}
    return {file.parent.name: file.parent for file in sorted(folder.glob("*/adapter_config.json"))}


def _subtract(base: Weights, aligned: Weights, allow_missing: Sequence[str]) -> dict[str, Delta]:
    """The deltas of the tensors that differ. Only equal ones are read to their end for that."""
    names = _common_tensors(base, aligned, allow_missing)
    _compare_configs(base, aligned, bool(allow_missing))
    deltas: dict[str, Delta] = {}
    with progress("comparing", "B", sum(base.nbytes(name) for name in names)) as bar:
        for name in names:
            # A head that the base ties moves with its embedding: its own change is what is left.
            before = (aligned, base.tied[name]) if name in base.tied else (base, name)
            if _differs(*before, aligned, name):
                deltas[name] = Lazy.between(*before, aligned, name)
            bar.update(base.nbytes(name))
    return deltas


def _tell_unread(base: Weights, aligned: Weights) -> None:
    """Say what the files hold, not both the same, that is in no part of the loaded model."""
    if not (isinstance(base, ModelWeights) and isinstance(aligned, ModelWeights)):
        return
    ours, theirs = base.stored, aligned.stored
    names = [
        name
        for name in sorted(base.beside | aligned.beside)
        if name not in ours
        or name not in theirs
        or ours.shape(name) != theirs.shape(name)
        or _differs(ours, name, theirs, name)
    ]
    if names:
        logger.warning(
            "transformers does not load these, so they are left out: %s%s",
            names[0],
            f" and {len(names) - 1} more" if names[1:] else "",
        )


def _compare_configs(base: Weights, aligned: Weights, other_kinds: bool) -> None:
    """Weights mean what a config makes of them, and a vector holds weights alone.

    Args:
        other_kinds: whether the models may be of different types.

    Raises:
        AlignvecError: they are, or they divide the same weights among other heads.
    """
    if base.architecture is None or aligned.architecture is None:
        return
    ours, theirs = base.architecture.computes, aligned.architecture.computes
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(name), theirs.get(name)
        if one == other:
            continue
        said = f"{name} is {one} in the base's config and {other} in the aligned model's"
        if name in _HEADS or (name == "model_type" and not other_kinds):
            raise AlignvecError(f"base and aligned model differ in architecture: {said}")
        logger.warning(
            "%s: with the vector at 1 the base computes otherwise than the aligned model", said
        )


def _differs(base: Weights, base_name: str, aligned: Weights, name: str) -> bool:
    for start, stop in parts(base.shape(base_name)):
        theirs = aligned.rows(name, start, stop)
        ours = base.rows(base_name, start, stop).to(theirs.device)
        # Floats of 8 bits know no comparison.
        same = ours.dtype.itemsize > 1 and torch.equal(ours, theirs)
        if not same and not torch.equal(ours.float(), theirs.float()):
            return True
    return False


def _common_tensors(base: Weights, aligned: Weights, allow_missing: Sequence[str]) -> list[str]:
    """Names on both sides, checked before any work: presence, kind of number, shape."""

    def allowed(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in allow_missing)

    for present, absent, where in ((base, aligned, "aligned"), (aligned, base, "base")):
        for name in present:
            if name in absent or name in absent.tied or allowed(name):
                continue
            raise AlignvecError(
                f"base and aligned model differ in architecture: {name} is missing in the "
                f"{where} model (--allow-missing '{name}' leaves it out)"
            )
    # In the order of the base; what only one of the two ties is compared as well.
    names = [*base, *(name for name in base.tied if name in aligned)]
    names = [name for name in names if name in aligned or name in aligned.tied]
    other = [name for name in names if base.shape(name) != aligned.shape(name)]
    for name in other:
        if not allowed(name):
            raise AlignvecError(_other_shape(base, aligned, name, other))
    names = [name for name in names if name not in other]
    for name in names:
        floating = [weights.dtype(name).is_floating_point for weights in (base, aligned)]
        if floating[0] != floating[1]:
            raise AlignvecError(
                f"base and aligned model differ in dtype: {name} is {base.dtype(name)} in the "
                f"base and {aligned.dtype(name)} in the aligned model; is one of them quantised?"
            )
    return [name for name in names if base.dtype(name).is_floating_point]


def _other_shape(base: Weights, aligned: Weights, name: str, other: list[str]) -> str:
    ours, theirs = base.shape(name), aligned.shape(name)
    shapes = f"differ in shape: {name} is {ours} in the base and {theirs} in the aligned model"
    if ours[1:] != theirs[1:] or not all(one.endswith((".weight", ".bias")) for one in other):
        return f"base and aligned model {shapes}"
    # Rows were added or taken away: tokens.
    options = " ".join(f"--allow-missing '{one}'" for one in other)
    return (
        f"base and aligned model {shapes}; if it is the vocabulary that is another, {options} "
        "leaves it out"
    )
