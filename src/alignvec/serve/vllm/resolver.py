"""The way that needs nothing of vLLM but its adapters: each setting is one of its own, with the
strengths multiplied in, and a request asks for it by the name of the model.

    ALIGNVEC_WAY=resolver VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE --max-loras 8
    {"model": "BASE@medical=0.7,legal=-0.3", ...}

vLLM asks its resolvers for an adapter whose name it does not know. Whatever vLLM does with adapters
is right for these: caches, graphs, tensor parallelism, quantised bases, experts. It costs a slot a
setting, so strengths are rounded to a step, equal settings are one adapter, and the adapters that
are kept are bounded, in vLLM as on the disk.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import torch
from vllm import envs
from vllm.config import VllmConfig
from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.v1.engine.input_processor import InputProcessor

from alignvec.base.source import cache_folder
from alignvec.errors import AlignvecError
from alignvec.files import atomic_folder, hash_of
from alignvec.knobs.setting import Setting, SettingLike, check_setting, parse_written
from alignvec.owned import foreign
from alignvec.serve.vllm.around import around
from alignvec.serve.vllm.bank import Bank
from alignvec.serve.vllm.bound import bounded
from alignvec.serve.vllm.reach import check_reach
from alignvec.serve.vllm.told import Told
from alignvec.system import lock
from alignvec.vector.delta import LowRank

logger = init_logger("vllm.alignvec")  # vLLM shows what is logged below its own name

NAME = "alignvec"  # among vLLM's resolvers
_SEPARATORS = "@:"
_PLACES = "settings-"  # folders of adapters, one of each process
_IDLE = 10.0  # seconds that a folder stays which nothing names any more


def follow() -> None:
    """Put it in place, in this process.

    Raises:
        AlignvecError: vLLM would ask no resolver, since its user did not say that it may.
    """
    if not envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
        raise AlignvecError(
            "ALIGNVEC_WAY=resolver needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=1; that opens vLLM's "
            "routes /v1/load_lora_adapter and /v1/unload_lora_adapter, too: keep them to yourself"
        )
    around(EngineArgs, "create_engine_config", _create_engine_config)
    around(OpenAIServingModels, "resolve_lora", _resolve_lora)
    around(InputProcessor, "process_inputs", _process_inputs)
    around(WorkerLoRAManager, "_load_adapter", _load_adapter)


class Turned(LoRARequest, weakref=True):  # type: ignore[call-arg]
    """The adapter of a setting: in use as long as a request, or vLLM's list of names, has it."""


class Settings(LoRAResolver):
    """Adapters of the settings that are asked for.

    Attributes:
        most: how many are kept.
    """

    def __init__(
        self, bank: Bank, names: Sequence[str], step: float = 0.05, most: int = 64
    ) -> None:
        """Args:
        names: by which the model is served.
        step: what strengths are rounded to.
        """
        self.most = most
        self._bank, self._step = bank, step
        self._names = sorted(names, key=len, reverse=True)  # one may begin with another
        self._name = names[0]
        self._prints = {knob: vector.fingerprint() for knob, vector in bank.vectors.items()}
        self._given: weakref.WeakValueDictionary[int, Turned] = weakref.WeakValueDictionary()
        self._making = asyncio.Lock()
        self._place: tuple[Path, int] | None = None

    def read(self, model: str) -> Setting | None:
        """The setting in the name of a model, rounded; None of a name that is not ours.

        Raises:
            AlignvecError: it is no setting of these knobs.
        """
        for name in self._names:
            if model.startswith(tuple(name + one for one in _SEPARATORS)):
                return self.rounded(parse_written(model[len(name) + 1 :]))
        return None

    def rounded(self, asked: SettingLike) -> Setting:
        """A setting in numbers, each a multiple of the step.

        Raises:
            AlignvecError: it is no setting of these knobs.
        """
        setting = bounded(check_setting(asked, self._bank.vectors))
        return {
            knob: round(round(strength / self._step) * self._step, 10) + 0.0
            for knob, strength in setting.items()
        }

    def name(self, setting: Setting) -> str:
        """The one name of a rounded setting, whatever was written."""
        first = next(iter(setting))
        turned = {knob: strength for knob, strength in setting.items() if strength} or {first: 0.0}
        written = ",".join(f"{knob}={strength}" for knob, strength in turned.items())
        return f"{self._name}{_SEPARATORS[0]}{written}"

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Turned | None:
        """See `LoRAResolver`.

        Raises:
            VLLMValidationError: the name is the model's, and what follows no setting.
        """
        try:
            setting = self.read(lora_name)
            return None if setting is None else await self.adapter(setting)
        except AlignvecError as error:
            raise VLLMValidationError(str(error), parameter="model") from None

    async def adapter(self, setting: Setting) -> Turned:
        """The adapter of a rounded setting, written if it is not there. vLLM gives it its number.

        Raises:
            AlignvecError: it cannot be written.
        """
        async with self._making:
            used = {request.lora_path for request in self._given.values()}
            folder = await asyncio.to_thread(self._write, setting, used)
            request = Turned(self.name(setting), 1, str(folder))
            self._given[id(request)] = request
            weakref.finalize(request, _touch, folder)
        return request

    def _write(self, setting: Setting, used: set[str]) -> Path:
        """The folder of a setting. Of the others the oldest go, those in `used` never."""
        root = self._root()
        folder = root / hash_of(self._prints, self._bank.rank, setting)[:16]
        if folder.exists():
            _touch(folder)
            return folder
        others = [one for one in root.iterdir() if one.is_dir() and not one.name.startswith(".")]
        others.sort(key=lambda one: one.stat().st_mtime)
        for one in others[: len(others) + 1 - self.most]:
            # What a client went away from, vLLM may still load in the step that it is at.
            gone_for = time.time() - one.stat().st_mtime
            if str(one) not in used and gone_for > _IDLE and not foreign(one):
                shutil.rmtree(one, ignore_errors=True)
        columns = self._bank.columns
        by = torch.tensor(list(setting.values()))[columns]
        factored = {
            name: LowRank(delta.a, delta.b * by, delta.transposed)
            for name, delta in self._bank.side_by_side().items()
        }
        with atomic_folder(folder) as partial:
            self._bank.write_to(partial, factored, torch.float32)
        return folder

    def _root(self) -> Path:
        """A folder that this process alone has, for as long as it runs, and a later one after."""
        number = 0
        while self._place is None:
            root = cache_folder() / "vllm" / f"{_PLACES}{number}"
            root.mkdir(parents=True, exist_ok=True)
            with suppress(BlockingIOError):
                self._place = root, lock(root)
            number += 1
        return self._place[0]


class _Recent(OrderedDict[str, LoRARequest]):
    """vLLM's adapters by name, the one that was asked for last at the end."""

    def __contains__(self, name: object) -> bool:
        found = super().__contains__(name)
        if found:
            self.move_to_end(name)  # type: ignore[arg-type]
        return found


def _touch(folder: Path) -> None:
    with suppress(OSError):
        os.utime(folder)


def _create_engine_config(
    create: Callable[..., VllmConfig], args: EngineArgs, *rest: Any, **named: Any
) -> VllmConfig:
    """An engine is made with slots for the settings, and who is asked for them is known."""
    told = Told.read()
    assert told is not None
    ranks = get_args(MaxLoRARanks)
    bank = Bank.of(args.model, told.vectors, ranks, told.check_base, gated=False)
    args.enable_lora = True
    args.max_lora_rank = max(args.max_lora_rank, bank.rank)
    if "alignvec" not in (envs.VLLM_PLUGINS or ()):
        logger.warning(
            "VLLM_PLUGINS does not name alignvec: knobs are turned by the name of the model alone, "
            "and a server passes over the fields knobs and profile of a body"
        )
    if args.max_loras == 1:
        logger.warning(
            "one setting at a time: requests of different settings wait for one another; "
            "--max-loras N runs N of them together"
        )
    config = create(args, *rest, **named)
    served = args.served_model_name or args.model
    names = [served] if isinstance(served, str) else served
    LoRAResolverRegistry.resolvers[NAME] = Settings(bank, names, told.step, told.most)
    return config


async def _resolve_lora(resolve: Callable[..., Any], models: OpenAIServingModels, name: str) -> Any:
    """Every way to write a setting is one adapter, and vLLM lets go of those asked for longest ago:
    it keeps all names for ever.
    """
    settings = LoRAResolverRegistry.resolvers.get(NAME)
    assert isinstance(settings, Settings)
    try:
        setting = settings.read(name)
    except AlignvecError as error:
        raise VLLMValidationError(str(error), parameter="model") from None
    if setting is None:
        return await resolve(models, name)
    found = await resolve(models, settings.name(setting))
    if isinstance(found, Turned):
        if not isinstance(models.lora_requests, _Recent):
            models.lora_requests = _Recent(models.lora_requests)
        models.lora_requests[name] = found
        ours = [key for key, one in models.lora_requests.items() if isinstance(one, Turned)]
        for old in ours[: -settings.most]:
            await models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=old))
            models.lora_resolver_lock.pop(old, None)
    return found


def _process_inputs(
    process: Callable[..., Any],
    processor: InputProcessor,
    request_id: str,
    prompt: Any,
    params: Any,
    *rest: Any,
    **named: Any,
) -> Any:
    if (getattr(params, "extra_args", None) or {}).get("knobs") is not None:
        raise VLLMValidationError(
            "here knobs are turned by the name of the model, as in BASE@medical=0.7 "
            "(ALIGNVEC_WAY=resolver)",
            parameter="knobs",
        )
    return process(processor, request_id, prompt, params, *rest, **named)


def _load_adapter(load: Callable[..., Any], manager: Any, request: LoRARequest) -> Any:
    """In a worker."""
    loaded = load(manager, request)
    if Path(request.lora_path).parent.name.startswith(_PLACES):
        check_reach(manager, loaded)
    return loaded
