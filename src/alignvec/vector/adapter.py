"""PEFT adapters: LoRA, rsLoRA and DoRA read as deltas, low-rank deltas written as LoRA."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn.functional import pad

from alignvec.base.checkpoint import CheckpointWeights, refuse_pickled
from alignvec.base.weights import Weights, all_finite
from alignvec.errors import AlignvecError
from alignvec.files import write_json
from alignvec.vector.adapter_config import MERGE, AdapterConfig, check_acts, check_whole
from alignvec.vector.adapter_tensors import TENSORS, sorted_out
from alignvec.vector.delta import Delta, Dense, Lazy, LowRank, parts
from alignvec.vector.experts import expert_deltas
from alignvec.vector.stream import check_space


def read_adapter(folder: Path, base: Weights) -> dict[str, Delta]:
    """The deltas of a PEFT LoRA, rsLoRA or DoRA adapter, of all that it trained.

    LoRA's factors stay factors, the scaling multiplied into B, so that delta = B A. DoRA's delta
    depends on the weight it changes and is of full rank; it is computed when it is used, as are the
    deltas of what was trained whole (biases, modules, rows of an embedding).

    Raises:
        AlignvecError: it is another kind of adapter, changes more than weights, is damaged, or does
            not fit the base.
    """
    config = AdapterConfig(folder)
    if not (folder / TENSORS).exists():
        refuse_pickled(folder, "PEFT")
    weights = CheckpointWeights(folder, TENSORS)
    modules, whole = sorted_out(folder / TENSORS, weights)
    named = base.names([*whole, *(f"{module}.weight" for module in modules)])
    whole = {named.get(name, name): key for name, key in whole.items()}
    tokens = {
        named.get(f"{module}.weight", f"{module}.weight").removesuffix(".weight"): found.tokens
        for module, found in modules.items()
        if found.tokens is not None
    }
    check_whole(config, base, whole, tokens)
    deltas: dict[str, Delta] = {}

    def add(name: str, delta: Delta) -> None:
        _check_fits(base, name, tuple(delta.shape))
        deltas[name] = deltas[name] + delta if name in deltas else delta

    for name, key in whole.items():
        if not _is_tied_copy(base, weights, name, key, whole):
            _check_fits(base, name, weights.shape(key))
            source = whole.get(base.tied.get(name, ""))
            if source is not None:  # a head moves with its embedding, and then on its own
                deltas[name] = Lazy.between(weights, source, weights, key)
            elif not _equal(base, name, weights, key):
                _check_alone(base, name, config, whole)
                deltas[name] = Lazy.between(base, name, weights, key)
    for module, found in modules.items():
        name, factors = f"{module}.weight", found.factors
        name = named.get(name, name)
        if found.tokens is not None and not _are_tied_rows(base, tokens, name, module, config):
            if name in base.tied:
                raise config.error(
                    "trainable_token_indices",
                    f"{name} is tied to {base.tied[name]} in the base; rows of it alone are not "
                    "read",
                )
            rows = base.shape(name)[:1] if name in base else ()
            _check_fits(base, name, (*rows, *found.tokens.shape[1:]))
            add(name, _rows(base, name, found.tokens, config, module))
        if "B.bias" in factors:
            bias = f"{name.removesuffix('.weight')}.bias"
            add(bias, _bias(base, bias, module, factors, config))
        if not factors:
            continue
        check_acts(config, base, module, name.removesuffix(".weight"), factors)
        unknown = name not in base and name not in base.tied and {"A", "B"} <= factors.keys()
        if unknown and (of_experts := expert_deltas(base, module, factors, config)):
            deltas |= of_experts
            continue
        # PEFT turns each layer by its kind, whatever the flag says of all, and no parameter.
        flag = bool(config.fields.fan_in_fan_out)
        transposed = flag if base.transposed is None else name in base.transposed
        transposed = transposed and not config.is_parameter(name)
        delta = _low_rank(folder, module, name, factors, config, transposed)
        if "embedding_A" in factors:
            _check_fits(base, name, tuple(delta.shape))
            if name in base.tied.values():
                raise AlignvecError(
                    f"the adapter changes {name} by factors, and in the base it is tied to the "
                    "output head, which PEFT leaves as it was or changes otherwise: that is not "
                    "read, nor does a merge into the base write it"
                )
            add(name, _as_dense(delta))
        elif "magnitude_vector" in factors:
            _check_fits(base, name, tuple(delta.shape))
            theta = deltas.pop(name, None)
            deltas[name] = _dora(base, name, theta, delta, factors["magnitude_vector"])
        else:
            add(name, delta)
    return deltas


def _check_fits(base: Weights, name: str, shape: tuple[int, ...]) -> None:
    if name not in base and name not in base.tied:
        raise AlignvecError(f"the adapter changes {name}, which the base does not have")
    if base.shape(name) != shape:
        rows = len(shape) > 1 and base.shape(name)[1:] == shape[1:]
        hint = "; was the vocabulary resized? then extract from a base resized alike"
        raise AlignvecError(
            f"the adapter changes {name} of shape {shape}; in the base it is {base.shape(name)}"
            + (hint if rows else "")
        )
    if not base.dtype(name).is_floating_point:
        raise AlignvecError(f"the adapter changes {name}, which in the base is {base.dtype(name)}")


def _is_tied_copy(
    base: Weights, weights: Weights, name: str, key: str, whole: Mapping[str, str]
) -> bool:
    """Whether a tensor is tied in the base and saved again, equal to the one it is tied to."""
    source = base.tied.get(name)
    if source is None:
        return False
    if source in whole:
        return torch.equal(weights[key], weights[whole[source]])
    return base.shape(name) == weights.shape(key) and _equal(base, name, weights, key)


def _are_tied_rows(
    base: Weights,
    tokens: Mapping[str, torch.Tensor],
    name: str,
    module: str,
    config: AdapterConfig,
) -> bool:
    """Whether rows of a tied tensor are those of the one it is tied to, saved again."""
    source = base.tied.get(name, "").removesuffix(".weight")
    return (
        source in tokens
        and config.tokens(module) in ([], config.tokens(source))
        and torch.equal(tokens[source], tokens[name.removesuffix(".weight")])
    )


def _equal(base: Weights, name: str, weights: Weights, key: str) -> bool:
    """Whether the adapter holds a mere copy of the base's tensor, in whichever dtype."""
    dtype = weights.dtype(key)
    return all(
        torch.equal(
            base.rows(name, start, stop).to(dtype).float(), weights.rows(key, start, stop).float()
        )
        for start, stop in parts(base.shape(name))
    )


def _check_alone(base: Weights, name: str, config: AdapterConfig, whole: Collection[str]) -> None:
    """PEFT trains a copy of a module to save: of a tied pair the other one stays."""
    module = name.rpartition(".")[0]
    alone = any(source == name and head not in whole for head, source in base.tied.items())
    if alone and not config.fields.ensure_weight_tying and config.saves(module):
        raise config.error(
            "modules_to_save",
            f"{name} was trained alone, and in the base it is tied to the output head; {MERGE}",
        )


def _low_rank(
    folder: Path,
    module: str,
    name: str,
    found: Mapping[str, torch.Tensor],
    config: AdapterConfig,
    transposed: bool,
) -> LowRank:
    """scaling * B A of a module, for the weight `name`. An embedding's weight is its transpose."""
    embedding = not {"embedding_A", "embedding_B"}.isdisjoint(found)
    names = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if not set(names) <= found.keys():
        raise AlignvecError(f"{folder} has only one of the two factors of {module}")
    if ("magnitude_vector" in found) != bool(config.fields.use_dora):
        there = "has magnitudes" if "magnitude_vector" in found else "has none"
        raise config.error("use_dora", f"{config.fields.use_dora}, but {module} {there}")
    transposed = embedding or transposed
    if transposed and "magnitude_vector" in found:
        raise AlignvecError(
            f"{folder} is a DoRA adapter on a layer that stores its weight transposed; merge it "
            "into its base and extract that"
        )
    a, b = (found[name] for name in names)
    if a.ndim > 2:
        raise AlignvecError(f"{folder}: {module} is a convolution, whose factors are not read")
    delta = LowRank(a, b, transposed)
    delta.check(f"{folder}: {module}")
    # Of a parameter PEFT asks by its own name.
    scale = config.scaling(name if config.is_parameter(name) else module, delta.rank)
    if math.frexp(scale)[0] != 0.5:  # no power of two: a smaller dtype would round B
        delta = LowRank(a.float(), b.float(), transposed)
    delta *= scale
    delta.check(f"{folder}: {module}, scaled by alpha / r,")
    return delta


def _bias(
    base: Weights, name: str, module: str, found: Mapping[str, torch.Tensor], config: AdapterConfig
) -> Dense:
    """With lora_bias, B has a bias, which is scaled as B A is."""
    if name not in base:
        raise config.error("lora_bias", f"{module} has no bias in the base")
    return Dense(found["B.bias"] * config.scaling(module, found["B"].shape[-1]))


def _as_dense(delta: LowRank) -> Lazy:
    """An embedding is looked up, not multiplied: no linear layer's adapter can write its delta."""

    def read(start: int, stop: int) -> Dense:
        return Dense(delta.part(start, stop).dense())

    return Lazy(tuple(delta.shape), torch.float32, read)


def _rows(
    base: Weights, name: str, values: torch.Tensor, config: AdapterConfig, module: str
) -> Lazy:
    """Rows of an embedding put in the place of the base's."""
    tokens, shape = config.tokens(module), base.shape(name)
    if len(tokens) != len(values) or any(token >= shape[0] for token in tokens):
        raise config.error(
            "trainable_token_indices",
            f"{len(tokens)} tokens for {len(values)} rows of {name}, which has {shape[0]}",
        )
    if not all_finite(values):
        raise AlignvecError(f"the tokens of {name} hold NaN or infinity")
    place = {token: row for row, token in enumerate(tokens)}

    def read(start: int, stop: int) -> Dense:
        theta = base.rows(name, start, stop).float()
        aligned = theta.clone()
        for token in range(start, stop):
            if token in place:
                aligned[token - start] = values[place[token]].float()
        return Dense.between(theta, aligned)

    return Lazy(shape, torch.float32, read)


def _dora(
    base: Weights, name: str, before: Delta | None, delta: LowRank, magnitude: torch.Tensor
) -> Lazy:
    """theta' = m (theta + B A) / |theta + B A|, the norm that of each row (Liu et al. 2024).

    Args:
        before: what the adapter changes of theta first.
    """
    lengths = magnitude.float().reshape(-1)
    if not all_finite(lengths):
        raise AlignvecError(f"the magnitudes of {name} hold NaN or infinity")
    if len(lengths) != delta.shape[0]:
        raise AlignvecError(f"the magnitudes of {name} are {len(lengths)}, its rows differ")

    def read(start: int, stop: int) -> Dense:
        theta = base.rows(name, start, stop).float()
        moved = theta + delta.part(start, stop).dense()
        if before is not None:
            moved += before.part(start, stop).dense()
        scale = lengths[start:stop] / torch.linalg.norm(moved, dim=1)
        return Dense.between(theta, scale[:, None] * moved)

    return Lazy(base.shape(name), torch.float32, read)


def write_adapter(
    folder: Path,
    base: str,
    factored: Mapping[str, LowRank],
    dtype: torch.dtype,
    parameters: Collection[str] = (),
) -> None:
    """A PEFT LoRA adapter with scaling 1: `adapter_model.safetensors`, `adapter_config.json`.

    Factors of a smaller rank are padded with zeros, since readers want one rank. Weights among
    `parameters` are named themselves, not by their layers.
    """
    rank, tensors = max(delta.rank for delta in factored.values()), {}
    for name, delta in factored.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        missing = rank - delta.rank
        a, b = pad(delta.a, (0, 0, 0, missing)), pad(delta.b, (0, missing))
        tensors[f"{module}.lora_A.weight"] = a.to(dtype).contiguous()
        tensors[f"{module}.lora_B.weight"] = b.to(dtype).contiguous()
    check_space(folder, sum(tensor.nbytes for tensor in tensors.values()))
    save_file(tensors, folder / TENSORS)
    write_json(folder / "adapter_config.json", _adapter_config(base, factored, rank, parameters))


def _adapter_config(
    base: str, factored: Mapping[str, LowRank], rank: int, parameters: Collection[str]
) -> dict[str, Any]:
    modules = sorted(name.removesuffix(".weight") for name in factored if name not in parameters)
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
        "target_modules": modules,
        **({"target_parameters": sorted(parameters)} if parameters else {}),
        "inference_mode": True,
    }
