"""PEFT adapters: LoRA, rsLoRA and DoRA read as deltas, low-rank deltas written as LoRA."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any

import regex
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from torch.nn.functional import pad

from alignvec.base.checkpoint import CheckpointWeights
from alignvec.base.weights import Weights, all_finite
from alignvec.errors import AlignvecError, one_line
from alignvec.files import read_object, validated, write_json
from alignvec.vector.delta import Delta, Dense, Lazy, LowRank
from alignvec.vector.stream import check_space

_FACTOR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)(\.weight)?"
)


_PATIENCE = 10.0  # seconds for all of an adapter's patterns; milliseconds are usual
_UNROLLED = 4000  # characters of a pattern with its counted repeats written out
_Patterns = list[tuple[Any, float]]
_Rank = Annotated[int, Field(gt=0, lt=2**31)]
_Alpha = Annotated[float, Field(allow_inf_nan=False)]


class _AdapterConfig(BaseModel):
    """What of PEFT's `adapter_config.json` says how large the delta is."""

    model_config = ConfigDict(strict=True)

    r: _Rank
    lora_alpha: _Alpha
    use_rslora: bool | None = None
    fan_in_fan_out: bool | None = None
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None


def read_adapter(folder: Path, base: Weights) -> dict[str, Delta]:
    """The deltas of a PEFT LoRA, rsLoRA or DoRA adapter.

    LoRA's factors stay factors, the scaling multiplied into B, so that delta = B A. DoRA's delta
    depends on the weight it changes and is of full rank; it is computed when it is used.

    Raises:
        AlignvecError: it is another kind of adapter, is damaged, or does not fit the base.
    """
    content = read_object(folder / "adapter_config.json")
    if content.get("peft_type") != "LORA":
        raise AlignvecError(f"{folder} is not a LoRA adapter")
    scaling = _Scaling(validated(_AdapterConfig, content, folder / "adapter_config.json"))
    factors: dict[str, dict[str, torch.Tensor]] = {}
    weights = CheckpointWeights(folder, "adapter_model.safetensors")
    for key in weights:
        match = _FACTOR.fullmatch(key)
        if not match:
            raise AlignvecError(
                f"{folder} also trains {key}, which is no low-rank factor; merge the adapter into "
                "its base and extract that"
            )
        factors.setdefault(match["module"], {})[match["part"]] = weights[key]
    deltas: dict[str, Delta] = {}
    for module, found in factors.items():
        name = f"{module}.weight"
        delta = _low_rank(folder, module, found, scaling)
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
    folder: Path, module: str, found: Mapping[str, torch.Tensor], scaling: _Scaling
) -> LowRank:
    if not {"A", "B"} <= found.keys():
        raise AlignvecError(f"{folder} has only one of the two factors of {module}")
    transposed = bool(scaling.config.fan_in_fan_out)
    if transposed and "magnitude_vector" in found:
        raise AlignvecError(
            f"{folder} is a DoRA adapter on a layer that stores its weight transposed; merge it "
            "into its base and extract that"
        )
    delta = LowRank(found["A"], found["B"], transposed)
    delta.check(f"{folder}: {module}")
    delta *= scaling.of(module)
    delta.check(f"{folder}: {module}, scaled by alpha / r,")
    return delta


def _dora(base: Weights, name: str, delta: LowRank, magnitude: torch.Tensor) -> Lazy:
    """theta' = m (theta + B A) / |theta + B A|, the norm that of each row (Liu et al. 2024)."""
    lengths = magnitude.float().reshape(-1)
    if not all_finite(lengths):
        raise AlignvecError(f"the magnitudes of {name} hold NaN or infinity")
    if len(lengths) != delta.shape[0]:
        raise AlignvecError(f"the magnitudes of {name} are {len(lengths)}, its rows differ")

    def read(start: int, stop: int) -> Dense:
        theta = base.rows(name, start, stop).float()
        moved = theta + delta.part(start, stop).dense()
        scale = lengths[start:stop] / torch.linalg.norm(moved, dim=1)
        return Dense.between(theta, scale[:, None] * moved)

    return Lazy(base.shape(name), torch.float32, read)


class _Scaling:
    """PEFT's factor on B A: alpha / r, or alpha / sqrt(r) for rsLoRA; patterns name modules."""

    def __init__(self, config: _AdapterConfig) -> None:
        self.config = config
        self._ranks = _compiled(config.rank_pattern)
        self._alphas = _compiled(config.alpha_pattern)
        self._until = time.monotonic() + _PATIENCE

    def of(self, module: str) -> float:
        rank = self._first(self._ranks, module, self.config.r)
        alpha = self._first(self._alphas, module, self.config.lora_alpha)
        return float(alpha / (math.sqrt(rank) if self.config.use_rslora else rank))

    def _first(self, patterns: _Patterns, module: str, default: float) -> float:
        """The value of the first pattern that fits. It may be one that backtracks for ever."""
        for pattern, value in patterns:
            left = self._until - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError
                if pattern.fullmatch(module, timeout=left):
                    return value
            except TimeoutError:
                raise AlignvecError(
                    f"adapter_config.json: its patterns take too long, at {pattern.pattern}"
                ) from None
        return default


def _compiled(patterns: Mapping[str, float] | None) -> _Patterns:
    """Expressions of Python's `re`, as PEFT reads them, for an engine that knows a timeout.

    That engine unrolls counted repeats, so a few characters might ask for all memory.
    """
    found = []
    for pattern, value in (patterns or {}).items():
        repeats = re.findall(r"\{(\d*),?(\d*)\}", pattern[:_UNROLLED])
        if len(pattern) * prod(int(most or least or 1) or 1 for least, most in repeats) > _UNROLLED:
            raise AlignvecError(f"adapter_config.json: pattern '{pattern}' is too large")
        try:
            text = re.compile(rf"(.*\.)?({pattern})").pattern
            found.append((regex.compile(text), value))
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise AlignvecError(
                f"adapter_config.json: pattern '{pattern}': {one_line(error)}"
            ) from None
    return found


def write_adapter(
    folder: Path, base: str, factored: Mapping[str, LowRank], dtype: torch.dtype
) -> None:
    """A PEFT LoRA adapter with scaling 1: `adapter_model.safetensors`, `adapter_config.json`.

    Factors of a smaller rank are padded with zeros, since readers want one rank.
    """
    rank = max(delta.rank for delta in factored.values())

    tensors = {}
    for name, delta in factored.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        missing = rank - delta.rank
        a, b = pad(delta.a, (0, 0, 0, missing)), pad(delta.b, (0, missing))
        tensors[f"{module}.lora_A.weight"] = a.to(dtype).contiguous()
        tensors[f"{module}.lora_B.weight"] = b.to(dtype).contiguous()
    check_space(folder, sum(tensor.nbytes for tensor in tensors.values()))
    save_file(tensors, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", _adapter_config(base, factored, rank))


def _adapter_config(base: str, factored: Mapping[str, LowRank], rank: int) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(delta.transposed for delta in factored.values()),
        # Full names, so that only the layers that have factors are touched.
        "target_modules": sorted(name.removesuffix(".weight") for name in factored),
        "inference_mode": True,
    }
