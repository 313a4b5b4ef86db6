"""From an aligned model to its alignment vector: a subtraction, or a LoRA adapter read as one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignvec.errors import AlignvecError
from alignvec.files import read_json
from alignvec.models import base_name
from alignvec.vector.alignment_vector import AlignmentVector, base_id
from alignvec.vector.delta import Delta, Dense, LowRank
from alignvec.vector.weights import CheckpointWeights, open_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Progress = Callable[[int, int], None]


def extract(
    base: str | Path | PreTrainedModel,
    aligned: str | Path | PreTrainedModel,
    name: str | None,
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
        deltas: dict[str, Delta] = dict(read_adapter(Path(aligned), base_weights))
    else:
        deltas = dict(_subtract(base_weights, open_weights(aligned), on_progress))
    return AlignmentVector(deltas, base_id(base), name or "alignment vector", training)


def _subtract(
    base: Mapping[str, torch.Tensor], aligned: Mapping[str, torch.Tensor], on_progress: Progress
) -> dict[str, Dense]:
    _check_same_tensors(base, aligned)
    deltas = {}
    for done, name in enumerate(base, start=1):
        if base[name].is_floating_point():
            delta = Dense.between(base[name], aligned[name].to(base[name].device))
            if delta is not None:
                _check_finite(delta.values, name)
                deltas[name] = delta
        on_progress(done, len(base))
    return deltas


def _check_same_tensors(
    base: Mapping[str, torch.Tensor], aligned: Mapping[str, torch.Tensor]
) -> None:
    for present, absent, where in ((base, aligned, "aligned"), (aligned, base, "base")):
        for name in present:
            if name not in absent:
                raise AlignvecError(
                    f"base and aligned model differ in architecture: {name} is missing in the "
                    f"{where} model"
                )
    for name in base:
        if base[name].shape != aligned[name].shape:
            raise AlignvecError(
                f"base and aligned model differ in shape: {name} is {tuple(base[name].shape)} in "
                f"the base and {tuple(aligned[name].shape)} in the aligned model"
            )


_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")


def read_adapter(folder: Path, base: Mapping[str, torch.Tensor]) -> dict[str, LowRank]:
    """The factors of a PEFT LoRA adapter, its scaling multiplied into B, so that delta = B A.

    Raises:
        AlignvecError: it is no plain LoRA adapter, is damaged, or does not fit the base.
    """
    config = read_json(folder / "adapter_config.json")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AlignvecError(f"{folder} is not a LoRA adapter")
    if config.get("use_dora"):
        raise AlignvecError(f"{folder} is a DoRA adapter; merge it into its base and extract that")
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
    deltas = {}
    for module, parts in factors.items():
        if len(parts) != 2:
            raise AlignvecError(f"{folder} has only one of the two factors of {module}")
        name, delta = (
            f"{module}.weight",
            LowRank(
                parts["A"],
                parts["B"] * _scaling(config, module),
                transposed=bool(config.get("fan_in_fan_out")),
            ),
        )
        if name not in base:
            raise AlignvecError(f"the adapter changes {name}, which the base does not have")
        if base[name].shape != delta.shape:
            raise AlignvecError(
                f"the adapter changes {name} of shape {tuple(delta.shape)}; in the base it is "
                f"{tuple(base[name].shape)}"
            )
        deltas[name] = delta
    return deltas


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
    if not bool(tensor.isfinite().all()):
        raise AlignvecError(f"{name} holds NaN or infinity")
