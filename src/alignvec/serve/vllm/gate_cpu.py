"""On a CPU: products of a whole batch, where vLLM gathers an adapter's weights for each token.

They are one operator that compiled code does not look into, so that vLLM may compile the model
around it, which it otherwise leaves where there are adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary
from vllm.config import VllmConfig
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.platforms.cpu import CpuPlatform
from vllm.utils.torch_utils import direct_register_custom_op

from alignvec.serve.vllm.around import around
from alignvec.serve.vllm.gate import Factors, products_of
from alignvec.serve.vllm.told import KEY

# By the first slice's A: the products with all A of a packed layer one below the other, and with
# its B as a block for each. Two products take half as long as two a slice.
_PRODUCTS: Any = WeakTensorKeyDictionary()


def follow() -> None:
    """Put it in place, in this process."""
    around(CpuPlatform, "check_and_update_config", _check_and_update_config)


def is_alone(config: VllmConfig) -> bool:
    """Whether the knobs have a configuration's only slot."""
    told = config.additional_config.get(KEY)
    return bool(told and told["alone"])


def put(manager: Any, told: Mapping[str, Any], like: torch.Tensor) -> Factors:
    """Make the products of an engine gated ones; its slot is the only one."""
    columns = told["columns"][: told["used"]]
    slices = max(len(module.lora_a_stacked) for module in manager.modules.values())
    wrappers, tokens = products_of(manager)
    factors = Factors(told["knobs"], columns * slices, tokens, like)
    for wrapper in wrappers:
        wrapper.__class__ = GatedAlone
        wrapper.factors, wrapper.rank = factors, told["used"]
    return factors


def forget() -> None:
    """The adapter is loaded anew."""
    _PRODUCTS.clear()


class GatedAlone(PunicaWrapperCPU):
    """The products of the one slot that there is."""

    factors: Factors
    rank: int  # columns that the knobs have of the slot's

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """y += B (factors * (A x)), of each slice."""
        torch.ops.vllm.alignvec_add_gated(
            y.view(-1, y.shape[-1]),
            x.view(-1, x.shape[-1]),
            list(lora_a_stacked),
            list(lora_b_stacked),
            self.factors.values,
            self.factors.used,
            self.rank,
        )


def _add_gated(
    y: torch.Tensor,
    x: torch.Tensor,
    a: list[torch.Tensor],
    b: list[torch.Tensor],
    factors: torch.Tensor,
    used: torch.Tensor,
    rank: int,
) -> None:
    """Args:
    y: [tokens, out], to which is added.
    x: [tokens, in].
    a, b: of each slice [1, 1, slot's rank, in] and [1, 1, its part of out, slot's rank].
    """
    if not used.item():
        return
    products = _PRODUCTS.get(a[0])
    if products is None:
        up = torch.block_diag(*(one[0, 0, :, :rank] for one in b))  # type: ignore[no-untyped-call]
        products = _product(torch.cat([one[0, 0, :rank] for one in a])), _product(up)
        _PRODUCTS[a[0]] = products
    down, up = products
    y.add_(up(down(x).mul_(factors[: len(x), : rank * len(a)])))


def _product(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """x -> x weight^T, as vLLM itself computes it on this processor."""
    layer: Any = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    return partial(layer.cpu_linear, weight=layer.weight, bias=None)


def _check_and_update_config(check: Callable[..., None], config: VllmConfig) -> None:
    """vLLM's own check of the configuration, which compiles nothing if it sees adapters."""
    adapters = config.lora_config
    if is_alone(config):
        config.lora_config = None
    try:
        check(config)
    finally:
        config.lora_config = adapters


if not hasattr(torch.ops.vllm, "alignvec_add_gated"):
    direct_register_custom_op(
        "alignvec_add_gated",
        _add_gated,
        mutates_args=["y"],
        fake_impl=lambda *_: None,  # what compilers are told: it returns nothing
    )
