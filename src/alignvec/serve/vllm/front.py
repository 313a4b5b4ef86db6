"""What the front of vLLM does otherwise: an engine is made with room for the knobs, and a request
that turns them names their adapter.

Every request passes here, from HTTP and offline alike, before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from vllm import envs
from vllm.config import VllmConfig
from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor

from alignvec.errors import AlignvecError
from alignvec.knobs.setting import SettingLike, check_setting, parse_written
from alignvec.serve.vllm.around import around
from alignvec.serve.vllm.bank import Bank
from alignvec.serve.vllm.request import is_ours, setting_of, turned
from alignvec.serve.vllm.told import KEY, NO_KNOBS, Told

logger = init_logger("vllm.alignvec")

_BANKS: dict[str, Bank] = {}  # by the folder of its adapter


def follow() -> None:
    """Put it in place, in this process."""
    around(EngineArgs, "create_engine_config", _create_engine_config)
    around(InputProcessor, "process_inputs", _process_inputs)


def bank_of(config: VllmConfig) -> Bank | None:
    """The knobs of an engine; None if it has none."""
    placed = config.additional_config.get(KEY)
    if not placed:
        return None
    folder = placed["adapter"]
    if folder not in _BANKS and (told := Told.read()):  # another process made the engine
        model = config.model_config.model
        _BANKS[folder] = Bank.of(model, told.vectors, [placed["rank"]], told.check_base)
    return _BANKS[folder]


def _create_engine_config(
    create: Callable[..., VllmConfig], args: EngineArgs, *rest: Any, **named: Any
) -> VllmConfig:
    told = Told.read()
    if told is None:
        return create(args, *rest, **named)
    _check_plugins(told)
    if args.enable_tower_connector_lora:
        raise AlignvecError("knobs do not go with --enable-tower-connector-lora")
    if args.enable_dbo:
        raise AlignvecError("knobs do not go with --enable-dbo: vLLM's adapters do not")
    # All of vLLM's slots are of the highest rank, and the factors as wide as a slot.
    ranks = [rank for rank in get_args(MaxLoRARanks) if rank >= args.max_lora_rank]
    bank = Bank.of(args.model, told.vectors, ranks, told.check_base)
    folder = str(bank.write())
    _BANKS[folder] = bank
    args.enable_lora = True
    args.max_lora_rank = bank.rank
    layers = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in bank.tensors})
    alone = args.max_loras == 1
    if args.lora_target_modules is None and alone:
        args.lora_target_modules = layers  # vLLM would work on the others, too
    elif missing := set(layers) - set(args.lora_target_modules or layers):
        raise AlignvecError(
            f"the knobs change {', '.join(sorted(missing))}, which --lora-target-modules leaves out"
        )
    told_on = {"adapter": folder, "alone": alone, **bank.to_json()}
    args.additional_config = {**args.additional_config, KEY: told_on}
    return create(args, *rest, **named)


def _check_plugins(told: Told) -> None:
    """What only the routes of a server can do, they do only if vLLM is allowed to load them."""
    if "alignvec" in (envs.VLLM_PLUGINS or ()):
        return
    if told.default or told.state or told.router:
        raise AlignvecError(
            "ALIGNVEC_SET, ALIGNVEC_STATE and ALIGNVEC_ROUTER act in the routes of alignvec, which "
            "vLLM loads only if VLLM_PLUGINS names alignvec"
        )
    if told.offline:
        return
    logger.warning(
        "VLLM_PLUGINS does not name alignvec: knobs come as extra_args or vllm_xargs alone, and a "
        "server passes over the fields knobs and profile of a body"
    )


def _process_inputs(
    process: Callable[..., EngineCoreRequest],
    processor: InputProcessor,
    request_id: str,
    prompt: Any,
    params: Any,
    *rest: Any,
    lora_request: LoRARequest | None = None,
    **named: Any,
) -> EngineCoreRequest:
    bank = bank_of(processor.vllm_config)
    extra = getattr(params, "extra_args", None) or {}
    for name in extra.keys() - {"knobs"}:
        if bank and get_close_matches(name.casefold(), ("knobs",), cutoff=0.8):
            raise VLLMValidationError(
                f"'{name}' is nothing here; did you mean 'knobs'?", parameter=name
            )
    asked = extra.get("knobs")
    if asked is not None:
        ours = _adapter(asked, bank)
        if lora_request is not None:
            raise VLLMValidationError(
                "a request names an adapter or turns knobs; not both", parameter="knobs"
            )
        lora_request = ours
    elif lora_request is not None and is_ours(lora_request):
        lora_request = _adapter(setting_of(lora_request.lora_path), bank)
    made = process(processor, request_id, prompt, params, *rest, lora_request=lora_request, **named)
    if lora_request is not None and is_ours(lora_request):
        # Caches of KV blocks beside vLLM's own tell adapters apart by other means, or not at all.
        made.cache_salt = "|".join(filter(None, (made.cache_salt, lora_request.lora_path)))
    return made


def _adapter(asked: Any, bank: Bank | None) -> LoRARequest | None:
    """Of a setting as a mapping, or as a text as in `vllm_xargs`, `medical=0.7,legal=expert`."""
    if bank is None:
        raise VLLMValidationError(NO_KNOBS, parameter="knobs")
    try:
        setting: SettingLike = asked
        if isinstance(asked, str):
            setting = parse_written(asked)
        elif not isinstance(asked, Mapping):
            raise AlignvecError('knobs are {"medical": 0.7}, or as a text medical=0.7')
        return turned(check_setting(setting, bank.vectors))
    except AlignvecError as error:
        raise VLLMValidationError(str(error), parameter="knobs") from None
