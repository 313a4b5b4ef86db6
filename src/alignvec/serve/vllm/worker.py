"""What a worker of vLLM does otherwise: it loads the adapter of the knobs, and writes the factors
of each step.

Both model runners are followed where they say which adapter each request of a step has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.lora.layers import LoRAMappingType
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.platforms import current_platform
from vllm.v1.worker.gpu.lora_utils import LoraState
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

from alignvec.serve.vllm import gate, gate_cpu
from alignvec.serve.vllm.around import around
from alignvec.serve.vllm.gate import Factors
from alignvec.serve.vllm.request import NAME, NUMBER, is_ours
from alignvec.serve.vllm.told import KEY


def follow() -> None:
    """Put it in place, in this process."""
    around(LoRAModelRunnerMixin, "load_lora_model", _load_lora_model)
    around(LoRAModelRunnerMixin, "set_active_loras", _set_active_loras)
    around(LoraState, "make_lora_inputs", _make_lora_inputs)
    around(WorkerLoRAManager, "_load_adapter", _load_adapter)


def _load_lora_model(
    load: Callable[..., Any],
    runner: Any,
    model: torch.nn.Module,
    vllm_config: VllmConfig,
    device: torch.device,
) -> torch.nn.Module:
    loaded: torch.nn.Module = load(runner, model, vllm_config, device)
    told = vllm_config.additional_config.get(KEY)
    if told:
        manager = runner.lora_manager._adapter_manager
        if current_platform.is_cpu() and gate_cpu.is_alone(vllm_config):
            like = torch.empty(0, dtype=vllm_config.lora_config.lora_dtype)
            factors = gate_cpu.put(manager, told, like)
        else:
            like = torch.empty(0, device=device)
            factors = gate.put(manager, told, like, get_tensor_model_parallel_rank())
        runner.lora_manager.alignvec = told
        runner.alignvec = factors
        if isinstance(state := getattr(runner, "lora_state", None), LoraState):
            state.alignvec = factors
    return loaded


def _load_adapter(load: Callable[..., Any], manager: Any, request: LoRARequest) -> Any:
    """The path of our adapter is a setting; what is loaded, the engine was told."""
    told: dict[str, Any] = getattr(manager, "alignvec", {})
    if is_ours(request):
        gate_cpu.forget()
        request = LoRARequest(NAME, NUMBER, told["adapter"])
    elif told and told["alone"]:
        raise ValueError(
            f"the knobs have the one slot there is; --max-loras 2 makes room for {request.name}"
        )
    return load(manager, request)


def _set_active_loras(
    activate: Callable[..., None],
    runner: Any,
    input_batch: Any,
    num_scheduled_tokens: np.ndarray,
    num_sampled_tokens: np.ndarray | None = None,
    mapping_type: LoRAMappingType = LoRAMappingType.LANGUAGE,
) -> None:
    """The first model runner, before a step."""
    factors: Factors | None = getattr(runner, "alignvec", None)
    if factors is not None:
        requests = [runner.requests[one].lora_request for one in input_batch.req_ids]
        factors.write(requests, num_scheduled_tokens)
    activate(runner, input_batch, num_scheduled_tokens, num_sampled_tokens, mapping_type)


def _make_lora_inputs(
    make: Callable[..., Any],
    state: Any,
    req_ids: list[str],
    idx_mapping: np.ndarray,
    num_scheduled_tokens: np.ndarray,
) -> Any:
    """The second model runner, before a step."""
    factors: Factors | None = getattr(state, "alignvec", None)
    if factors is not None:
        factors.write([state.lora_requests.get(one) for one in req_ids], num_scheduled_tokens)
    return make(state, req_ids, idx_mapping, num_scheduled_tokens)
