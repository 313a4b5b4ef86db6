"""On a CPU: products of a whole batch, where vLLM gathers an adapter's weights for each token.

They are one operator that compiled code does not look into, so that vLLM may compile the model
around it, which it otherwise leaves where there are adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform
from vllm.utils.torch_utils import direct_register_custom_op

from alignvec.serve.vllm.around import around
from alignvec.serve.vllm.gate import Factors
from alignvec.serve.vllm.told import KEY


def follow() -> None:
    """Put it in place, in this process."""
    around(CpuPlatform, "check_and_update_config", _check_and_update_config)


def is_alone(config: VllmConfig) -> bool:
    """Whether the knobs have a configuration's only slot."""
    told = config.additional_config.get(KEY)
    return bool(told and told["alone"])


def put(wrapper: PunicaWrapperCPU, factors: Factors) -> None:
    """Make the products of an engine gated ones; its slot is the only one."""
    wrapper.__class__ = GatedAlone
    assert isinstance(wrapper, GatedAlone)
    wrapper.factors = factors


class GatedAlone(PunicaWrapperCPU):
    """The products of the one slot that there is."""

    factors: Factors

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
        )


def _add_gated(
    y: torch.Tensor,
    x: torch.Tensor,
    a: list[torch.Tensor],
    b: list[torch.Tensor],
    factors: torch.Tensor,
    used: torch.Tensor,
) -> None:
    """Args:
    y: [tokens, out], to which is added.
    x: [tokens, in].
    a, b: of each slice [1, 1, rank, in] and [1, 1, its part of out, rank].
    """
    if not used.item():
        return
    scales = factors[: len(x)].to(x.dtype)
    start = 0
    for down, up in zip(a, b, strict=True):
        part = y[:, start : start + up.shape[2]]
        part.addmm_((x @ down[0, 0].T).mul_(scales), up[0, 0].T)
        start += up.shape[2]


def _add_nothing(
    y: torch.Tensor,
    x: torch.Tensor,
    a: list[torch.Tensor],
    b: list[torch.Tensor],
    factors: torch.Tensor,
    used: torch.Tensor,
) -> None:
    """What compilers are told: it returns nothing."""


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
        "alignvec_add_gated", _add_gated, mutates_args=["y"], fake_impl=_add_nothing
    )
