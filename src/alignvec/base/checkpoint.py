"""The safetensors of a checkpoint folder: which files count, and their tensors read in rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from alignvec.base.weights import Weights
from alignvec.base.wrappers import unwrapped
from alignvec.errors import AlignvecError, one_line
from alignvec.files import file_state, hash_of, read_json, read_object
from alignvec.system import read_at

INDEX = "model.safetensors.index.json"
# How safetensors spells the dtypes that are read and written.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
# What makes a folder of weights a model; code (.py) is never taken along.
_CONFIG_FILES = (
    "*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.model", "*.txt", "LICENSE*",
)  # fmt: skip
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# What a trainer leaves beside the weights.
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
RECORD = "training.json"  # how the weights of a folder came about, of that folder alone
TOLD_BY = ("quantization_config", "compression_config")  # the fields that tell of a quantisation
_DIMENSIONS = 64  # torch's own limit


@dataclass(frozen=True)
class _Location:
    """Where a tensor lies in a file."""

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class CheckpointWeights(Weights):
    """The safetensors of a folder. Nothing is read before it is asked for.

    Read into fresh memory rather than mapped: mapped pages count as resident memory
    until the file is closed, and a file that shrinks meanwhile would end the process.

    Raises:
        AlignvecError: no safetensors, a truncated file, or a shard that the index names is missing.
    """

    def __init__(self, folder: Path, only: str | None = None) -> None:
        """Args: only: this one file of the folder, instead of the whole checkpoint."""
        locations: dict[str, _Location] = {}
        if only:
            locations = _read_header(folder / only)
        else:
            for file, promised in _files_of_checkpoint(folder).items():
                found = _read_header(file)
                if absent := sorted(set(map(unwrapped, promised)) - found.keys()):
                    raise AlignvecError(
                        f"{file} lacks {absent[0]}, which {INDEX} says is in it; copy the file anew"
                    )
                locations.update(found)
        super().__init__(locations)
        self._files = {where.file for where in locations.values()} | {folder / "config.json"}

    @cached_property
    def state(self) -> str:
        """By the state of each file, not by its content: nothing is read."""
        return hash_of(sorted(map(file_state, self._files)))

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        where: _Location = self._entries[self.tied.get(name, name)]
        width = prod(where.shape[1:])
        tensor = torch.empty((stop - start) * width, dtype=where.dtype)
        with where.file.open("rb", buffering=0) as handle:
            _read_into(handle, tensor, where.offset + start * width * where.dtype.itemsize)
        return tensor.reshape(stop - start, *where.shape[1:])

    def sample(self, name: str, count: int) -> torch.Tensor:
        where: _Location = self._entries[self.tied.get(name, name)]
        size = prod(where.shape)
        step = max(1, size // max(1, count))
        if step == 1 and size <= count:
            return self[name].reshape(-1)
        tensor = torch.empty(len(range(0, size, step)[:count]), dtype=where.dtype)
        width = where.dtype.itemsize
        view = memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]
        with where.file.open("rb", buffering=0) as handle:
            for at in range(0, len(view), width):
                _fill(handle, view[at : at + width], where.offset + at * step)
        return tensor


def _read_into(handle: Any, tensor: torch.Tensor, offset: int) -> None:
    """Fill a contiguous 1-D tensor with the bytes of a file from `offset` on."""
    if not tensor.numel():
        return
    _fill(handle, memoryview(tensor.view(torch.uint8).numpy()), offset)  # type: ignore[arg-type]


def _fill(handle: Any, view: memoryview, offset: int) -> None:
    while len(view):
        count = read_at(handle.fileno(), view, offset)
        if not count:
            raise AlignvecError(f"{handle.name} ended early; was it changed meanwhile?")
        view, offset = view[count:], offset + count


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, sorted.

    Raises:
        AlignvecError: there is none, or only pickled weights, which are never read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        refuse_pickled(folder, "transformers")
        raise AlignvecError(f"{folder} holds no .safetensors file; is it a checkpoint folder?")
    return files


def refuse_pickled(folder: Path, library: str) -> None:
    """Raises: AlignvecError: there are pickled weights; what is pickled is never read."""
    for file in sorted(folder.iterdir()):
        if file.suffix in _PICKLED and not file.name.startswith(_NO_WEIGHTS):
            raise AlignvecError(
                f"{file} holds pickled weights, which alignvec never reads; load them with "
                f"{library} and save them again with save_pretrained, which writes safetensors"
            )


def copy_config(folder: Path, out: Path) -> None:
    """Config, tokenizer, generation config and chat templates; what is in `out` stays as it is."""
    for pattern in _CONFIG_FILES:
        for file in folder.glob(pattern):
            # An index is of other files; beside an adapter's config transformers wants an adapter.
            other = file.name.endswith(".index.json")
            other |= file.name in ("adapter_config.json", RECORD)
            copy = out / file.relative_to(folder)
            if file.is_file() and not other and not copy.exists():
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)


def told_quantisation(config: dict[str, Any]) -> Any:
    """What a config says of a quantisation, of the whole or of a part (`text_config`); or None."""
    for key in TOLD_BY:
        if config.get(key):
            return config[key]
    parts = [part for part in config.values() if isinstance(part, dict)]
    return next((told for told in map(told_quantisation, parts) if told is not None), None)


def _read_header(file: Path) -> dict[str, _Location]:
    if not file.is_file():
        raise AlignvecError(f"{file} is missing or no file")
    try:
        # The library checks that the header is sound and fits the file; it hides the offsets.
        with safe_open(file, framework="pt"):
            pass
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
    except Exception as error:  # the reader has exceptions of its own
        raise AlignvecError(
            f"{file} is truncated or no safetensors file: {one_line(error)}"
        ) from None
    locations = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = tuple(entry["shape"])
        if not name.isprintable():
            raise AlignvecError(f"{file}: {name!r} is no name for a tensor")
        if len(shape) > _DIMENSIONS or prod(max(1, size) for size in shape) >= 2**63:
            # The second may well be: without values, where one of the sizes is 0.
            raise AlignvecError(f"{file}: {name} is of a shape that no tensor has")
        if entry["dtype"] not in DTYPES:
            raise AlignvecError(f"{file}: {name} is of dtype {entry['dtype']}, which is not read")
        start = 8 + length + entry["data_offsets"][0]
        if (plain := unwrapped(name)) != name and (plain in header or plain in locations):
            raise AlignvecError(f"{file} holds {plain} twice: plain, and as {name} of a wrapper")
        locations[plain] = _Location(file, start, DTYPES[entry["dtype"]], shape)
    return locations


def _files_of_checkpoint(folder: Path) -> dict[Path, set[str]]:
    """The files that transformers would load, in its order, and what an index promises of each.

    Some repositories hold the weights a second time, or the index of an older upload.
    """
    config = folder / "config.json"
    explicit = read_object(config).get("transformers_weights") if config.exists() else None
    if isinstance(explicit, str):
        if Path(explicit).name != explicit:
            raise AlignvecError(f"{config}: transformers_weights names '{explicit}', no file there")
        if explicit.endswith(".index.json"):
            return _indexed_files(folder / explicit)
        return {folder / explicit: set()}
    if (folder / "model.safetensors").exists():
        return {folder / "model.safetensors": set()}
    if (folder / INDEX).exists():
        return _indexed_files(folder / INDEX)
    files = checkpoint_files(folder)
    raise AlignvecError(
        f"{folder} holds {files[0].name}, but neither model.safetensors nor {INDEX}: transformers "
        "would not load it"
    )


def _indexed_files(index: Path) -> dict[Path, set[str]]:
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise AlignvecError(f"{index} has no weight_map")
    files: dict[Path, set[str]] = {}
    beside = {file.name for file in index.parent.iterdir()}
    for tensor, name in sorted(names.items(), key=lambda entry: entry[1]):
        if Path(name).name != name:
            raise AlignvecError(f"{index} names '{name}', which is not a file beside it")
        if name not in beside:
            raise AlignvecError(f"{index.parent / name} is missing, though the index names it")
        files.setdefault(index.parent / name, set()).add(tensor)
    return files
