"""The safetensors of a checkpoint folder: which files count, and their tensors read in rows."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from alignvec.base.weights import Weights
from alignvec.errors import AlignvecError, one_line
from alignvec.files import read_json

INDEX = "model.safetensors.index.json"
# How safetensors spells the dtypes that are read and written.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
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

    Read with `pread` into fresh memory rather than mapped: mapped pages count as resident memory
    until the file is closed, and a file that shrinks meanwhile would end the process.

    Raises:
        AlignvecError: no safetensors, a truncated file, or a shard that the index names is missing.
    """

    def __init__(self, folder: Path, only: str | None = None) -> None:
        """Args: only: this one file of the folder, instead of the whole checkpoint."""
        locations: dict[str, _Location] = {}
        for file in [folder / only] if only else _files_of_checkpoint(folder):
            locations.update(_read_header(file))
        if _is_tied(folder):
            locations.pop("lm_head.weight", None)
        super().__init__(locations)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        where: _Location = self._entries[name]
        width = prod(where.shape[1:])
        tensor = torch.empty((stop - start) * width, dtype=where.dtype)
        with where.file.open("rb", buffering=0) as handle:
            _read_into(handle, tensor, where.offset + start * width * where.dtype.itemsize)
        return tensor.reshape(stop - start, *where.shape[1:])

    def sample(self, name: str, count: int) -> torch.Tensor:
        where: _Location = self._entries[name]
        size = prod(where.shape)
        step = max(1, size // count)
        tensor = torch.empty(len(range(0, size, step)[:count]), dtype=where.dtype)
        with where.file.open("rb", buffering=0) as handle:
            for index in range(len(tensor)):
                at = where.offset + index * step * where.dtype.itemsize
                _read_into(handle, tensor[index : index + 1], at)
        return tensor


def _is_tied(folder: Path) -> bool:
    """Some checkpoints store a tied output head twice; a live model has it once."""
    config_file = folder / "config.json"
    config = read_json(config_file) if config_file.exists() else {}
    return isinstance(config, dict) and bool(config.get("tie_word_embeddings", False))


def _read_into(handle: Any, tensor: torch.Tensor, offset: int) -> None:
    """Fill a contiguous 1-D tensor with the bytes of a file from `offset` on."""
    if not tensor.numel():
        return
    view = memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]
    while len(view):
        count = os.preadv(handle.fileno(), [view], offset)
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
        if any(file.suffix in _PICKLED for file in folder.iterdir()):
            raise AlignvecError(
                f"{folder} holds pickled weights, which alignvec never reads; save the model with "
                "safe_serialization=True (safetensors)"
            )
        raise AlignvecError(f"{folder} holds no .safetensors file; is it a checkpoint folder?")
    return files


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
        locations[name] = _Location(file, start, DTYPES[entry["dtype"]], shape)
    return locations


def _files_of_checkpoint(folder: Path) -> list[Path]:
    """Those that transformers would load; some repositories hold the weights a second time."""
    index = folder / INDEX
    if index.exists():
        return _indexed_files(index)
    files = checkpoint_files(folder)
    return [file for file in files if file.name == "model.safetensors"] or files


def _indexed_files(index: Path) -> list[Path]:
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise AlignvecError(f"{index} has no weight_map")
    files = []
    beside = {file.name for file in index.parent.iterdir()}
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise AlignvecError(f"{index} names '{name}', which is not a file beside it")
        if name not in beside:
            raise AlignvecError(f"{index.parent / name} is missing, though the index names it")
        files.append(index.parent / name)
    return files
