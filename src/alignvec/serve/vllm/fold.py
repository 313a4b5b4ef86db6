"""A setting folded into the weights of a running engine, and taken out again, bit for bit.

Folded, a setting costs nothing per token and is what every request starts from: the knobs of a
request act on top of it, `{"medical": 0.2}` on a fold of `{"medical": 0.7}` is 0.9 in all. What is
added is B diag(strengths) A, of the factors that lie in our slot, which vLLM has cut up for tensor
parallelism and packed as it did with the weights.

    llm.collective_rpc("alignvec_fold", args=({"medical": 0.7},))    # offline; {} takes it out
    await fold(engine_client, {"medical": "expert"})                 # in a server

Nothing that was computed before serves a request after: a fold empties the prefix cache, and is
refused while a request is being answered. `fold` lets these finish first and the new ones wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from vllm.config import CompilationMode
from vllm.engine.protocol import EngineClient
from vllm.logger import init_logger
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.v1.engine.core import EngineCore
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin
from vllm.v1.worker.worker_base import WorkerBase

from alignvec.errors import AlignvecError, check_known, one_line
from alignvec.knobs.setting import Setting, SettingLike, check_setting
from alignvec.serve.vllm.around import around
from alignvec.serve.vllm.bound import bounded
from alignvec.serve.vllm.front import bank_of
from alignvec.serve.vllm.request import NUMBER, carrier
from alignvec.serve.vllm.told import NO_KNOBS

logger = init_logger("vllm.alignvec")

METHOD = "alignvec_fold"
_UNDO = "alignvec_undo"  # of a model runner: what brings the weights back
_ROWS = 1024  # of a weight at a time, in float32
_FOLDING = asyncio.Lock()


def follow() -> None:
    """Put it in place, in this process."""
    setattr(WorkerBase, METHOD, fold_worker)
    around(EngineCore, "collective_rpc", _collective_rpc)
    around(LoRAModelRunnerMixin, "reset_lora_state", _reset_lora_state)


async def fold(engine: EngineClient, setting: SettingLike) -> Setting:
    """Fold a setting, in the place of what is folded now, into all workers of a server's engine.

    Requests that are being answered finish first; those that come meanwhile wait, and are answered
    with the new weights.

    Args:
        setting: in numbers or levels; a knob that is not named is at 0. `{}` takes all out.

    Returns:
        The setting in numbers, of every knob.

    Raises:
        AlignvecError: it is no setting of these knobs, or cannot be folded; nothing has changed.
    """
    bank = bank_of(engine.vllm_config)
    if bank is None:
        raise AlignvecError(NO_KNOBS)
    checked = bounded(check_setting(setting, bank.vectors))
    if engine.vllm_config.parallel_config.data_parallel_size > 1:
        raise AlignvecError("with data parallelism one engine might fold and another not; no fold")
    async with _FOLDING:
        await engine.pause_generation(mode="wait")
        try:
            await engine.collective_rpc(METHOD, args=(checked,))
        except Exception as error:  # of another process, and of no type any more
            raise AlignvecError(f"not folded: {one_line(error)}") from error
        finally:
            await engine.resume_generation()
    return checked


def _collective_rpc(
    call: Callable[..., list[Any]], core: EngineCore, method: Any, *args: Any, **named: Any
) -> list[Any]:
    """Between two steps of an engine: what it remembers goes before its weights change."""
    if method == METHOD:
        scheduler: Any = core.scheduler
        if scheduler.connector is not None:
            raise AlignvecError(
                "a fold does not go with a KV connector, which may keep what the weights before it "
                "computed; turn the knobs per request"
            )
        # Of the waiting ones some may have been preempted, and go on from what they wrote.
        begun = any(request.num_output_tokens for request in scheduler.waiting)
        if scheduler.running or begun or not core.reset_prefix_cache():
            raise AlignvecError(
                "requests are being answered, and a fold would change the model under them; wait "
                "for them to end"
            )
    return call(core, method, *args, **named)


@torch.inference_mode()
def fold_worker(worker: WorkerBase, setting: Mapping[str, float]) -> dict[str, Any]:
    """What each worker does.

    Args:
        setting: knob -> strength.

    Returns:
        `knobs`, those that are folded now, and the number of `layers` that they change.

    Raises:
        AlignvecError: an unknown knob, a strength that is no finite number, or a weight that cannot
            be added to: nothing has changed. Or a sum that its dtype cannot hold: then nothing is
            folded, whatever was before.
    """
    loras: Any = getattr(worker.model_runner, "lora_manager", None)
    told = getattr(loras, "alignvec", None)
    if told is None:
        raise AlignvecError(NO_KNOBS)
    for knob in setting:
        check_known("knob", knob, told["knobs"])
    strengths = torch.tensor([bounded(setting).get(knob, 0.0) for knob in told["knobs"]])
    loras.add_adapter(carrier({}))  # it may have given way to others
    manager = loras._adapter_manager
    slot = manager.lora_index_to_id.index(NUMBER)
    layers = {
        name: layer
        for name, layer in manager.modules.items()
        if isinstance(layer, BaseLinearLayerWithLoRA)
        and any(bool(b[slot].any()) for b in layer.lora_b_stacked)
    }
    for name, layer in layers.items():
        _check(name, layer, worker)
    worker.synchronize_device()
    undo: list[Callable[[], object]] = worker.model_runner.__dict__.setdefault(_UNDO, [])
    _take_out(undo)
    try:
        if strengths.any():
            columns = torch.zeros(loras.lora_config.max_lora_rank)
            columns[: told["rank"]] = strengths[told["columns"]]
            for name, layer in layers.items():
                _add(name, layer, slot, columns, undo)
    except BaseException:
        _take_out(undo)
        raise
    finally:
        worker.synchronize_device()
    return {"knobs": {knob: by for knob, by in setting.items() if by}, "layers": len(undo)}


def _reset_lora_state(reset: Callable[..., None], runner: Any) -> None:
    """vLLM has replaced the weights: with the old ones went what was folded."""
    if undo := runner.__dict__.get(_UNDO):
        undo.clear()
        logger.warning("the weights are new ones, and the setting that was folded is gone")
    reset(runner)


def _take_out(undo: list[Callable[[], object]]) -> None:
    while undo:
        undo.pop()()


def _check(name: str, layer: BaseLinearLayerWithLoRA, worker: WorkerBase) -> None:
    """Refuse what cannot be folded by its name, before anything changes."""
    base: Any = layer.base_layer
    if not isinstance(base.quant_method, UnquantizedLinearMethod):
        raise AlignvecError(
            f"{name} is quantised ({type(base.quant_method).__name__}), and what is added would "
            "have to be quantised with it; turn the knobs per request, which leaves it as it is"
        )
    if layer.tp_size > 1 and worker.lora_config.fully_sharded_loras:
        raise AlignvecError(
            "with --fully-sharded-loras no worker has the factors of its own weights; start vLLM "
            "without it to fold"
        )
    if _is_packed(base):
        if worker.compilation_config.mode != CompilationMode.NONE:
            raise AlignvecError(
                "on a CPU vLLM compiles packed weights into its code; start it with "
                "--enforce-eager to fold"
            )
        return
    shape = (sum(layer.output_slices), layer.lora_a_stacked[0].shape[-1])
    if tuple(base.weight.shape) != shape:
        raise AlignvecError(f"{name} is held as {tuple(base.weight.shape)}, not {shape}: no fold")


def _is_packed(base: Any) -> bool:
    """Whether vLLM has let go of the weight for a copy in its CPU's own layout."""
    return not base.weight.numel() and hasattr(base, "cpu_linear")


def _add(
    name: str,
    layer: BaseLinearLayerWithLoRA,
    slot: int,
    columns: torch.Tensor,
    undo: list[Callable[[], object]],
) -> None:
    """weight += B diag(columns) A, in float32, rounded once, of the factors as the slot holds them
    (in vLLM's dtype of adapters: what is gated is the same).

    Args:
        columns: [rank] float32, the strength of each.
        undo: what brings back all bits is added to it.
    """
    base: Any = layer.base_layer
    if _is_packed(base):
        product = base.cpu_linear  # it holds the weight
        weight = unpacked(base, layer.lora_a_stacked[0].shape[-1])
        _add_to(name, weight, layer, slot, columns)
        undo.append(partial(setattr, base, "cpu_linear", product))
        base.weight = torch.nn.Parameter(weight, requires_grad=False)
        dispatch_cpu_unquantized_gemm(base, remove_weight=True)
        return
    weight = base.weight.data
    original = weight.to("cpu", copy=True)
    undo.append(partial(weight.copy_, original))
    _add_to(name, weight, layer, slot, columns)  # where it is: graphs read there


def unpacked(base: Any, width: int) -> torch.Tensor:
    """[out, width], the weight of a layer that has only its product: that of the unit vectors, each
    a sum of one number and zeros, and so exact.
    """
    rows = [
        base.cpu_linear(one.to(base.weight.dtype), base.weight, None)
        for one in torch.split(torch.eye(width), _ROWS)
    ]
    return torch.cat(rows).T.contiguous()


def _add_to(
    name: str,
    weight: torch.Tensor,
    layer: BaseLinearLayerWithLoRA,
    slot: int,
    columns: torch.Tensor,
) -> None:
    start = 0
    for a, b, width in zip(
        layer.lora_a_stacked, layer.lora_b_stacked, layer.output_slices, strict=True
    ):
        scaled = a[slot, 0].float() * columns.to(a.device)[:, None]
        rows = torch.split(weight[start : start + width], _ROWS)
        for part, factor in zip(rows, torch.split(b[slot, 0], _ROWS), strict=True):
            part.copy_(part.float() + factor.float() @ scaled)
            if not part.isfinite().all():
                raise AlignvecError(f"{name} with this setting is beyond what {weight.dtype} holds")
        start += width
