"""From an aligned model to its alignment vector: a subtraction, or a LoRA adapter read as one."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import regex
from pydantic import BaseModel, ConfigDict, Field

from alignvec.errors import AlignvecError
from alignvec.files import checked, read_object
from alignvec.models import base_name, one_line, transposed_weights
from alignvec.vector.alignment_vector import AlignmentVector, base_id
from alignvec.vector.delta import Delta, Dense, Lazy, LowRank, parts
from alignvec.vector.stream import Progress
from alignvec.vector.weights import CheckpointWeights, Weights, all_finite, open_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


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
        training = read_object(record) if record.exists() else {}
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
        transposed=transposed_weights(base, deltas),
    )
    if not deltas:
        logger.warning("the two models are equal: a vector that changes nothing")
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
    scaling = _Scaling(checked(_AdapterConfig, content, folder / "adapter_config.json"))
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
    import torch

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
