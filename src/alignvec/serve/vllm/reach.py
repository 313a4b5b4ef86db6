"""Whether all of an adapter acts. vLLM passes over factors of layers that it does not find."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.utils import PPMissingLayer

from alignvec.errors import AlignvecError


def check_reach(loras: Any, adapter: Any) -> None:
    """Args:
        loras: the worker's manager of adapters (`WorkerLoRAManager`).
        adapter: as it was read (`LoRAModel`), not yet packed.

    Raises:
        AlignvecError: it has factors of a layer that no adapter of vLLM's can change.
    """
    manager = loras._adapter_manager
    known = {name for names in manager.packed_modules.values() for name in names}
    known |= manager.modules.keys()
    elsewhere = tuple(  # on another stage of the pipeline
        f"{name}."
        for name, module in manager.model.named_modules()
        if isinstance(module, PPMissingLayer)
    )
    for name in adapter.loras:
        if name not in known and not name.startswith(elsewhere):
            raise AlignvecError(
                f"the vectors change {name}, where this model of vLLM's takes no adapter; fold "
                "them into a checkpoint (alignvec fold)"
            )
