"""Several processes that train one model (`accelerate launch`): one writes, the others wait for it.

Which of them this one is, Accelerate says (`PartialState`); a process alone is the main one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, pad_across_processes
from transformers import Trainer

from alignvec.errors import AlignvecError
from alignvec.files import work_folder

Value = TypeVar("Value")


@contextmanager
def shared_work(out: Path, group: PartialState) -> Iterator[Path]:
    """`work_folder` of all processes: the main one holds it, for the others until all are through.

    Raises:
        AlignvecError: see `work_folder`; in the main process, whose end is that of the others.
    """
    with ExitStack() as held:
        yield from_main(group, lambda: held.enter_context(work_folder(out, worth="checkpoint-*")))
        group.wait_for_everyone()


def from_main(group: PartialState, find: Callable[[], Value]) -> Value:
    """What `find` gives the main process; the others wait, and are told."""
    found = [find() if group.is_main_process else None]
    broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def share_of(batch: int, group: PartialState) -> int:
    """How many pairs of a step are one process's.

    Raises:
        AlignvecError: they cannot be divided evenly.
    """
    if batch % group.num_processes:
        raise AlignvecError(
            f"{batch} pairs a step cannot be divided among {group.num_processes} processes; "
            f"--batch-size {-(-batch // group.num_processes) * group.num_processes}"
        )
    share: int = batch // group.num_processes
    return share


def whole_state(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """The trained model's weights by name, put together from all processes; all have to call.

    None in a process alone, which has them in the model, and perhaps in one that is not the main
    one.
    """
    if trainer.accelerator.num_processes == 1:
        return None
    state: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return state


def gather_unequal(gather: Callable[[Any], Any], values: Any) -> Any:
    """Accelerate's `gather` of floats [n], n of each process its own; what is no number drops."""
    gathered = gather(pad_across_processes(values, pad_index=float("nan")))
    return gathered[~gathered.isnan()] if gathered.ndim else gathered
