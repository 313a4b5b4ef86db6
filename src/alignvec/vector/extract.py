"""From an aligned model to its alignment vector: a subtraction, or a LoRA adapter read as one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignvec.errors import AlignvecError
from alignvec.files import read_json
from alignvec.models import base_name, transposed_weights
from alignvec.vector.alignment_vector import AlignmentVector, base_id
from alignvec.vector.delta import Delta, Dense, Lazy, LowRank, parts
from alignvec.vector.stream import Progress
from alignvec.vector.weights import CheckpointWeights, Weights, all_finite, open_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def extract(
    base: str | Path | PreTrainedModel,
    aligned: str | Path | PreTrainedModel,
    name: str | None,
    allow_missing: Sequence[str],
    on_progress: Progress,
) -> AlignmentVector:
    """See `AlignmentVector.extract`."""
    training: dict[str, Any] = {}
    if isinstance(aligned, str | Path):
        name = name or base_name(str(aligned))
        record = Path(aligned) / "training.json"
        training = read_json(record) if record.exists() else {}
    base_weights = open_weights(base)
    if isinstance(aligned, str | Path) and (Path(aligned) / "adapter_config.json").exists():
        deltas = read_adapter(Path(aligned), base_weights)
    else:
        deltas = _subtract(base_weights, open_weights(aligned), allow_missing, on_progress)
    vector = AlignmentVector(
        deltas,
        base_id(base),
        name or "alignment vector",
        training,
        transposed=transposed_weights(base) & deltas.keys(),
    )
    live = any(not isinstance(source, str | Path) for source in (base, aligned))
    return vector.in_memory() if live else vector  # a live model may change later


def _subtract(
    base: Weights, aligned: Weights, allow_missing: Sequence[str], on_progress: Progress
) -> dict[str, Delta]:
    """The deltas of the tensors that differ. Only equal ones are read to their end for that."""
    names = _common_tensors(base, aligned, allow_missing)
    done, total = 0, sum(base.nbytes(name) for name in names)
    deltas: dict[str, Delta] = {}
    for name in names:
        if _differs(base, aligned, name):
            deltas[name] = Lazy.between(base, aligned, name)
        done += base.nbytes(name)
        on_progress(done, total)
    return deltas


def _differs(base: Weights, aligned: Weights, name: str) -> bool:
    import torch

    for start, stop in parts(base.shape(name)):
        theirs = aligned.rows(name, start, stop)
        ours = base.rows(name, start, stop).to(theirs.device)
        if not torch.equal(ours, theirs) and not torch.equal(ours.float(), theirs.float()):
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


_FACTOR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)(\.weight)?"
)


def read_adapter(folder: Path, base: Weights) -> dict[str, Delta]:
    """The deltas of a PEFT LoRA, rsLoRA or DoRA adapter.

    LoRA's factors stay factors, the scaling multiplied into B, so that delta = B A. DoRA's delta
    depends on the weight it changes and is of full rank; it is computed when it is used.

    Raises:
        AlignvecError: it is another kind of adapter, is damaged, or does not fit the base.
    """
    config = read_json(folder / "adapter_config.json")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AlignvecError(f"{folder} is not a LoRA adapter")
    factors: dict[str, dict[str, torch.Tensor]] = {}
    weights = CheckpointWeights(folder, "adapter_model.safetensors")
    for key in weights:
        match = _FACTOR.fullmatch(key)
        if not match:
            raise AlignvecError(
                f"{folder} also trains {key}, which is no low-rank factor; merge the adapter into "
                "its base and extract that"
            )
        _check_finite(weights[key], key)
        factors.setdefault(match["module"], {})[match["part"]] = weights[key]
    deltas: dict[str, Delta] = {}
    for module, found in factors.items():
        name = f"{module}.weight"
        delta = _low_rank(folder, module, found, config)
        if name not in base:
            raise AlignvecError(f"the adapter changes {name}, which the base does not have")
        if base.shape(name) != tuple(delta.shape):
            raise AlignvecError(
                f"the adapter changes {name} of shape {tuple(delta.shape)}; in the base it is "
                f"{base.shape(name)}"
            )
        magnitude = found.get("magnitude_vector")
        deltas[name] = delta if magnitude is None else _dora(base, name, delta, magnitude)
    return deltas


def _low_rank(
    folder: Path, module: str, found: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> LowRank:
    if not {"A", "B"} <= found.keys():
        raise AlignvecError(f"{folder} has only one of the two factors of {module}")
    a, b = found["A"], found["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise AlignvecError(f"{folder}: the factors of {module} do not fit each other")
    transposed = bool(config.get("fan_in_fan_out"))
    if transposed and "magnitude_vector" in found:
        raise AlignvecError(
            f"{folder} is a DoRA adapter on a layer that stores its weight transposed; merge it "
            "into its base and extract that"
        )
    return LowRank(a, b * _scaling(config, module), transposed)


def _dora(base: Weights, name: str, delta: LowRank, magnitude: torch.Tensor) -> Lazy:
    """theta' = m (theta + B A) / |theta + B A|, the norm that of each row (Liu et al. 2024)."""
    import torch

    lengths = magnitude.float().reshape(-1)
    if len(lengths) != delta.shape[0]:
        raise AlignvecError(f"the magnitudes of {name} are {len(lengths)}, its rows differ")

    def read(start: int, stop: int) -> Dense:
        theta = base.rows(name, start, stop).float()
        moved = theta + delta.part(start, stop).dense()
        scale = lengths[start:stop] / torch.linalg.norm(moved, dim=1)
        return Dense.between(theta, scale[:, None] * moved)

    return Lazy(base.shape(name), torch.float32, read)


def _scaling(config: Mapping[str, Any], module: str) -> float:
    """PEFT's factor on B A: alpha / r, or alpha / sqrt(r) for rsLoRA; patterns name modules."""
    rank, alpha = (
        next(
            (
                value
                for pattern, value in (config.get(patterns) or {}).items()
                if re.fullmatch(rf"(.*\.)?({pattern})", module)
            ),
            config[plain],
        )
        for patterns, plain in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _check_finite(tensor: torch.Tensor, name: str) -> None:
    if not all_finite(tensor):
        raise AlignvecError(f"{name} holds NaN or infinity")
