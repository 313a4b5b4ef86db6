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
from vllm.v1.worker.gpu.lora_utils import LoraState
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

from alignvec.serve.vllm.around import around
from alignvec.serve.vllm.gate import Factors, put
from alignvec.serve.vllm.reach import check_reach
from alignvec.serve.vllm.request import NAME, NUMBER, carrier, is_ours
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
        wrappers = set(manager.punica_wrapper_mapping.values())
        tokens = max(len(wrapper._token_lora_indices) for wrapper in wrappers)
        factors = Factors(told, tokens, device)
        for wrapper in wrappers:
            put(wrapper, factors, get_tensor_model_parallel_rank(), manager.lora_slots == 1)
        runner.lora_manager.alignvec = told
        runner.lora_manager._load_adapter(carrier({}))  # what does not fit, fails here and now
        runner.alignvec = factors
        if isinstance(state := getattr(runner, "lora_state", None), LoraState):
            state.alignvec = factors
    return loaded


def _load_adapter(load: Callable[..., Any], manager: Any, request: LoRARequest) -> Any:
    """The path of our adapter is a setting; what is loaded, the engine was told."""
    if not is_ours(request):
        return load(manager, request)
    loaded = load(manager, LoRARequest(NAME, NUMBER, manager.alignvec["adapter"]))
    check_reach(manager, loaded)
    return loaded


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
    if factors is not None and input_batch.lora_id_to_lora_request:
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
    if factors is not None and state.lora_requests:
        factors.write([state.lora_requests.get(one) for one in req_ids], num_scheduled_tokens)
    return make(state, req_ids, idx_mapping, num_scheduled_tokens)
