"""From an aligned model to its alignment vector: a subtraction, or a LoRA adapter read as one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from alignvec.base.identity import base_id
from alignvec.base.live import open_weights
from alignvec.base.source import base_name
from alignvec.base.weights import Weights
from alignvec.errors import AlignvecError
from alignvec.files import read_object
from alignvec.progress import progress
from alignvec.vector.adapter import read_adapter
from alignvec.vector.delta import Delta, Lazy, parts
from alignvec.vector.model_delta import ModelDelta

logger = logging.getLogger(__name__)


def extract(
    base: str | Path | torch.nn.Module,
    aligned: str | Path | torch.nn.Module,
    name: str | None,
    allow_missing: Sequence[str],
) -> ModelDelta:
    """See `AlignmentVector.extract`."""
    # transformers takes longer to import than all else, and an architecture is asked for only here.
    from alignvec.base.conv1d import transposed_weights

    training: dict[str, Any] = {}
    if isinstance(aligned, str | Path):
        name = name or base_name(str(aligned))
        record = Path(aligned) / "training.json"
        training = read_object(record) if record.exists() else {}
    base_weights = open_weights(base)
    if isinstance(aligned, str | Path) and (Path(aligned) / "adapter_config.json").exists():
        deltas = read_adapter(Path(aligned), base_weights)
    else:
        deltas = _subtract(base_weights, open_weights(aligned), allow_missing)
    calibration = training.pop("calibration", None)  # a line has its levels from training
    found = ModelDelta(
        deltas,
        base_id(base),
        name or "alignment vector",
        training,
        calibration,
        transposed_weights(base, deltas),
    )
    if not deltas:
        logger.warning("the two models are equal: a vector that changes nothing")
    live = any(not isinstance(source, str | Path) for source in (base, aligned))
    return found.in_memory() if live else found  # a live model may change later


def bank_knobs(aligned: str | Path) -> list[str]:
    """The knobs of a bank, which has an adapter of each in a folder; none of anything else."""
    folder = Path(aligned)
    if any((folder / file).exists() for file in ("adapter_config.json", "config.json")):
        return []
    return sorted(file.parent.name for file in folder.glob("*/adapter_config.json"))


def _subtract(base: Weights, aligned: Weights, allow_missing: Sequence[str]) -> dict[str, Delta]:
    """The deltas of the tensors that differ. Only equal ones are read to their end for that."""
    names = _common_tensors(base, aligned, allow_missing)
    deltas: dict[str, Delta] = {}
    with progress("comparing", "B", sum(base.nbytes(name) for name in names)) as bar:
        for name in names:
            if _differs(base, aligned, name):
                deltas[name] = Lazy.between(base, aligned, name)
            bar.update(base.nbytes(name))
    return deltas


def _differs(base: Weights, aligned: Weights, name: str) -> bool:
    for start, stop in parts(base.shape(name)):
        theirs = aligned.rows(name, start, stop)
        ours = base.rows(name, start, stop).to(theirs.device)
        # Floats of 8 bits know no comparison.
        same = ours.dtype.itemsize > 1 and torch.equal(ours, theirs)
        if not same and not torch.equal(ours.float(), theirs.float()):
            return True
    return False


def _common_tensors(base: Weights, aligned: Weights, allow_missing: Sequence[str]) -> list[str]:
    """Names on both sides, checked before any work: presence, kind of number, shape."""
    for present, absent, where in ((base, aligned, "aligned"), (aligned, base, "base")):
        for name in present:
            if name in absent or any(fnmatchcase(name, pattern) for pattern in allow_missing):
                continue
            raise AlignvecError(
                f"base and aligned model differ in architecture: {name} is missing in the "
                f"{where} model (--allow-missing '{name}' leaves it out)"
            )
    names = [name for name in base if name in aligned]
    for name in names:
        if base.shape(name) != aligned.shape(name):
            raise AlignvecError(
                f"base and aligned model differ in shape: {name} is {base.shape(name)} in "
                f"the base and {aligned.shape(name)} in the aligned model"
            )
        floating = [weights.dtype(name).is_floating_point for weights in (base, aligned)]
        if floating[0] != floating[1]:
            raise AlignvecError(
                f"base and aligned model differ in dtype: {name} is {base.dtype(name)} in the "
                f"base and {aligned.dtype(name)} in the aligned model; is one of them quantised?"
            )
    return [name for name in names if base.dtype(name).is_floating_point]
