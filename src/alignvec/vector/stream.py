"""Write safetensors a part at a time: nothing larger than a part is ever held.

The size of every tensor is known before the work starts, so a full disk is noticed then, each file
gets its header and its length at once, and threads fill in the parts in any order.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from alignvec.base.checkpoint import DTYPES, INDEX
from alignvec.base.weights import all_finite
from alignvec.errors import AlignvecError
from alignvec.files import hash_of, write_json
from alignvec.progress import progress
from alignvec.system import bytes_on_disk, flush, write_at
from alignvec.vector.delta import parts

_JOURNAL = "written.journal"


@dataclass(frozen=True)
class Output:
    """One tensor to write.

    Attributes:
        rows: (start, stop) -> those rows, in any floating dtype; called from several threads.
        done: called once after its last row is written, before it counts as written.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Callable[[int, int], torch.Tensor]
    done: Callable[[], None] = lambda: None

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_tensors(
    folder: Path, outputs: Mapping[str, Output], what: str = "writing", max_shard_size: str = "5GB"
) -> None:
    """Write `model.safetensors`, or shards and an index, into `folder`.

    What an earlier, killed call wrote into the same folder is kept: tensors that its journal names
    are not computed again, if it laid them out in the same way. The caller sees to it that the
    folder belongs to the same work.

    Args:
        what: the step that this is, for its bar.

    Raises:
        AlignvecError: a result is not finite.
        OSError: the disk is full or the folder cannot be written.
    """
    journal = folder / _JOURNAL
    layout = work_key([(n, o.shape, str(o.dtype)) for n, o in outputs.items()], max_shard_size)
    lines = journal.read_text().splitlines() if journal.exists() else []
    written = set(lines[1:]) if lines[:1] == [layout] else set()
    if not written:
        journal.write_text(f"{layout}\n")
    places = _lay_out(folder, outputs, max_shard_size)
    total = sum(output.nbytes for output in outputs.values())

    def note(names: list[str]) -> None:
        _note(journal, names, {places[name][0] for name in names})

    # The disk works while parts are computed.
    with progress(what, "B", total) as bar, ThreadPoolExecutor(1) as beside:
        bar.update(sum(outputs[name].nbytes for name in written))
        unsaved, saved = [], beside.submit(note, [])
        try:
            for name in _fill(outputs, places, [name for name in outputs if name not in written]):
                outputs[name].done()
                unsaved.append(name)
                if saved.done():
                    saved.result()  # raises what went wrong
                    unsaved, saved = [], beside.submit(note, unsaved)
                bar.update(outputs[name].nbytes)
        finally:  # an interrupt loses nothing that is written
            saved.result()
            note(unsaved)
    journal.unlink()


def work_key(*what: object) -> str:
    """A short name for a piece of work, for `atomic_folder(resume=...)`."""
    return hash_of(version("alignvec"), *what)[:12]


def _lay_out(
    folder: Path, outputs: Mapping[str, Output], max_shard_size: str
) -> dict[str, tuple[Path, int]]:
    """Make the files at their full length; returns where each tensor starts."""
    there = sum(bytes_on_disk(file) for file in folder.glob("model*.safetensors"))
    check_space(folder, sum(output.nbytes for output in outputs.values()) - there)
    split = split_state_dict_into_shards_factory(
        dict(outputs),
        get_storage_size=lambda output: output.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    places: dict[str, tuple[Path, int]] = {}
    for file, names in (split.filename_to_tensors or {"model.safetensors": []}).items():
        starts = _write_header(folder / file, {name: outputs[name] for name in names})
        places.update((name, (folder / file, start)) for name, start in starts.items())
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / INDEX, index)
    return places


def check_space(folder: Path, nbytes: int) -> None:
    """Refuse to start writing `nbytes` that the disk has no room for.

    Raises:
        AlignvecError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise AlignvecError(
            f"no space in {folder.parent}: {nbytes / 1e9:.1f} GB to write, {free / 1e9:.1f} free"
        )


def _write_header(file: Path, outputs: Mapping[str, Output]) -> dict[str, int]:
    """The start of a safetensors file, and its length; returns where each tensor begins."""
    spelled = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name, output in outputs.items():
        starts[name], end = end, end + output.nbytes
        header[name] = {
            "dtype": spelled[output.dtype],
            "shape": list(output.shape),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("r+b" if file.exists() else "wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        handle.truncate(8 + len(text) + end)
    return {name: 8 + len(text) + start for name, start in starts.items()}


def _fill(
    outputs: Mapping[str, Output],
    places: Mapping[str, tuple[Path, int]],
    names: Sequence[str],
) -> Iterator[str]:
    """Compute and write all parts on all cores; yields each name when it is complete."""

    def write(name: str, start: int, stop: int) -> str:
        output, (file, offset) = outputs[name], places[name]
        rows = output.rows(start, stop).to(output.dtype).contiguous()
        if rows.is_floating_point() and not all_finite(rows):
            raise AlignvecError(f"{name} holds NaN or infinity in {output.dtype}")
        row_bytes = prod(output.shape[1:]) * output.dtype.itemsize
        with file.open("r+b", buffering=0) as handle:
            _write_at(handle.fileno(), rows, offset + start * row_bytes)
        return name

    left = {name: sum(1 for _ in parts(outputs[name].shape)) for name in names}
    yield from (name for name in names if not left[name])  # tensors without rows
    todo = ((name, *span) for name in names for span in parts(outputs[name].shape))
    workers = os.cpu_count() or 1
    with _one_torch_thread(), ThreadPoolExecutor(workers) as pool:
        running: set[Future[str]] = set()
        try:
            for job in todo:
                running.add(pool.submit(write, *job))
                if len(running) > workers:
                    yield from _finished(running, left)
            while running:
                yield from _finished(running, left)
        finally:
            for future in running:
                future.cancel()


def _finished(running: set[Future[str]], left: dict[str, int]) -> Iterator[str]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        running.remove(future)
        name = future.result()
        left[name] -= 1
        if not left[name]:
            yield name


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Parts already run side by side; threads within them would only fight for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_at(descriptor: int, tensor: torch.Tensor, offset: int) -> None:
    if not tensor.numel():
        return
    view = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    while len(view):
        count = write_at(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _note(journal: Path, names: Sequence[str], files: set[Path]) -> None:
    """Data first, then the note: after a power cut the journal must not know more than the disk."""
    for file in files:
        flush(file, times=False)
    with journal.open("a") as handle:
        handle.write("".join(f"{name}\n" for name in names))
        handle.flush()
        os.fsync(handle.fileno())
