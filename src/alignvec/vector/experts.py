"""An adapter on experts: PEFT's LoRA on one tensor that holds the weights of them all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from alignvec.base.weights import Weights
from alignvec.errors import AlignvecError
from alignvec.vector.adapter_config import MERGE, AdapterConfig
from alignvec.vector.delta import Delta, Dense, Lazy, LowRank

if TYPE_CHECKING:
    from alignvec.base.architecture import Architecture

_EXPERT = re.compile(r"\.experts\.\d+\.")


def expert_deltas(
    base: Weights,
    module: str,
    factors: Mapping[str, torch.Tensor],
    config: AdapterConfig,
) -> dict[str, Delta]:
    """The deltas of a tensor [E, out, in] of `module` that PEFT reached by `target_parameters`.

    Which of its tensors that was the shapes of the factors tell, or, of square ones, the config.

    Args:
        factors: `A` [E r, in], those of all experts one below the other, and `B` [out, r E], the
            expert changing fastest.

    Returns:
        A delta for each part that the files hold; none if it is no such tensor.

    Raises:
        AlignvecError: it may be one or the other.
    """
    known, a, b = base.architecture, factors["A"], factors["B"]
    while module.endswith(".base_layer"):  # of one tensor of the module beside another
        module = module.removesuffix(".base_layer")
    if known is None or a.ndim != 2 or b.ndim != 2:
        return {}
    fitting = {}
    for name, tensor in known.live.items():
        if name.rpartition(".")[0] == module and tensor.ndim == 3:
            turned = known.stores_experts_in_out(module)
            count, out, width = (tensor.mT if turned else tensor).shape
            if not len(a) % count and (len(b), a.shape[1], b.shape[1]) == (out, width, len(a)):
                fitting[name] = count, out, width
    if len(fitting) > 1:
        fitting = {name: shape for name, shape in fitting.items() if config.is_parameter(name)}
        if len(fitting) != 1:
            raise config.error(
                "target_parameters",
                f"the factors on {module} fit several of its tensors, and nothing says which of "
                f"them they are of; {MERGE}",
            )
    deltas: dict[str, Delta] = {}
    for name, (count, out, width) in fitting.items():
        factors_a = a.reshape(count, -1, width)
        scale = config.scaling(name, len(a) // count)
        factors_b = scale * b.float().reshape(out, -1, count).permute(2, 0, 1)
        if known.stores_experts_in_out(module):
            deltas[name] = _stacked(factors_a.mT, factors_b.mT)
            continue
        # Taken apart as the weights are, with the number of the expert beside.
        numbers = torch.arange(float(count))[:, None, None].expand(count, out, 1)
        for part, taken in known.unpacked({name: torch.cat([factors_b, numbers], 2)}).items():
            if taken.ndim == 2:
                expert = int(taken[0, -1])
                deltas[part] = LowRank(factors_a[expert].contiguous(), taken[:, :-1].contiguous())
            else:
                deltas[part] = _stacked(factors_b, factors_a)
    return deltas


def of_experts(names: Iterable[str]) -> bool:
    """Whether a name is that of one expert among several."""
    return any(_EXPERT.search(name) for name in names)


def completed(known: Architecture, factored: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """`factored` with factors of zero for the experts that lack some beside those that have.

    PEFT packs the factors of a layer's experts together as transformers does with the weights, and
    takes it that they are all there.

    Raises:
        AlignvecError: PEFT does not know how this model's experts are packed.
    """
    packs = {home: [name for name, _ in parts] for home, parts in known.packs().items()}
    modules = {
        home.rpartition(".")[0]: parts for home, parts in packs.items() if factored.keys() & parts
    }
    if modules and not known.experts_known_to_peft:
        first = next(name for parts in modules.values() for name in parts if name in factored)
        raise AlignvecError(
            f"{first} is packed with other experts when the model is loaded, in a way that PEFT "
            "does not know; fold the vector"
        )
    every = [
        name
        for home, parts in packs.items()
        if home.rpartition(".")[0] in modules
        for name in parts
    ]
    nothing = {
        name: LowRank(torch.zeros(1, known.shapes[name][1]), torch.zeros(known.shapes[name][0], 1))
        for name in every
        if name not in factored
    }
    return {**factored, **nothing}


def _stacked(left: torch.Tensor, right: torch.Tensor) -> Lazy:
    """left @ right of each expert, [E, ...], computed when it is used."""

    def read(start: int, stop: int) -> Dense:
        return Dense(left[start:stop].float() @ right[start:stop].float())

    return Lazy((len(left), left.shape[1], right.shape[2]), torch.float32, read)
