"""The weights of a checkpoint or a model: a mapping from name to tensor, readable in rows."""

from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignvec.errors import AlignvecError
from alignvec.files import read_json
from alignvec.models import checkpoint_files, find_base, one_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

INDEX = "model.safetensors.index.json"
_DIMENSIONS = 64  # torch's own limit
_SAMPLES = 64  # values of a tensor that go into the fingerprint


class Weights(Mapping[str, "torch.Tensor"]):
    """Tensors by name. Shapes and dtypes are known before anything is read."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        """Args: entries: name -> anything with the `shape` and `dtype` of that tensor."""
        self._entries = entries

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.rows(name, 0, row_count(self.shape(name))).reshape(self.shape(name))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entries[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        dtype: torch.dtype = self._entries[name].dtype
        return dtype

    def nbytes(self, name: str) -> int:
        return prod(self.shape(name)) * self.dtype(name).itemsize

    @abstractmethod
    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """[stop - start, ...]: a piece of a tensor along its first dimension.

        A tensor without dimensions counts as one row and comes back as [1].
        """

    @abstractmethod
    def sample(self, name: str, count: int) -> torch.Tensor:
        """About `count` values evenly spaced over a tensor, flat."""

    @cached_property
    def fingerprint(self) -> str:
        """A short hash that tells one base from another, whatever floating dtype it is held in.

        Names, shapes and 64 evenly spaced values a tensor, rounded to bfloat16: a float32 base and
        its bfloat16 copy agree, another model or a further fine-tuned one does not. It reads a few
        bytes of each tensor, so it is as quick for 70B parameters as for 70M. It guards against
        mistakes, not against forgery.
        """
        import torch

        digest = hashlib.sha256()
        for name in sorted(self):
            digest.update(f"{name}{self.shape(name)}".encode())
            sample = self.sample(name, _SAMPLES).to(torch.bfloat16)
            digest.update(sample.view(torch.int16).cpu().numpy().tobytes())
        return digest.hexdigest()[:32]


def row_count(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


class LiveWeights(Weights):
    """The parameters of a loaded model. A tied tensor appears once."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__({name: value.detach() for name, value in model.named_parameters()})

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        tensor: torch.Tensor = self._entries[name]
        return (tensor if tensor.ndim else tensor.reshape(1))[start:stop]

    def sample(self, name: str, count: int) -> torch.Tensor:
        flat: torch.Tensor = self._entries[name].reshape(-1)
        return flat[:: max(1, flat.numel() // count)][:count]


@dataclass(frozen=True)
class _Place:
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
        places: dict[str, _Place] = {}
        for file in [folder / only] if only else _files_of_checkpoint(folder):
            places.update(_read_header(file))
        if _is_tied(folder):
            places.pop("lm_head.weight", None)
        super().__init__(places)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        import torch

        place: _Place = self._entries[name]
        width = prod(place.shape[1:])
        tensor = torch.empty((stop - start) * width, dtype=place.dtype)
        with place.file.open("rb", buffering=0) as handle:
            _read_into(handle, tensor, place.offset + start * width * place.dtype.itemsize)
        return tensor.reshape(stop - start, *place.shape[1:])

    def sample(self, name: str, count: int) -> torch.Tensor:
        import torch

        place: _Place = self._entries[name]
        size = prod(place.shape)
        step = max(1, size // count)
        tensor = torch.empty(len(range(0, size, step)[:count]), dtype=place.dtype)
        with place.file.open("rb", buffering=0) as handle:
            for index in range(len(tensor)):
                at = place.offset + index * step * place.dtype.itemsize
                _read_into(handle, tensor[index : index + 1], at)
        return tensor


def _is_tied(folder: Path) -> bool:
    """Some checkpoints store a tied output head twice; a live model has it once."""
    config_file = folder / "config.json"
    config = read_json(config_file) if config_file.exists() else {}
    return isinstance(config, dict) and bool(config.get("tie_word_embeddings", False))


def _read_into(handle: Any, tensor: torch.Tensor, offset: int) -> None:
    """Fill a contiguous 1-D tensor with the bytes of a file from `offset` on."""
    import torch

    if not tensor.numel():
        return
    view = memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]
    while len(view):
        count = os.preadv(handle.fileno(), [view], offset)
        if not count:
            raise AlignvecError(f"{handle.name} ended early; was it changed meanwhile?")
        view, offset = view[count:], offset + count


def dtype_names() -> dict[str, torch.dtype]:
    """How safetensors spells the dtypes that are read and written."""
    import torch

    return {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
        "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
        "BOOL": torch.bool,
    }  # fmt: skip


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite, without a mask of the tensor's size."""
    if not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # 8-bit floats know no order
    least, greatest = tensor.aminmax()  # both are NaN if any value is
    return bool(least.isfinite() & greatest.isfinite())


def _read_header(file: Path) -> dict[str, _Place]:
    from safetensors import safe_open

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
    dtypes = dtype_names()
    places = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = tuple(entry["shape"])
        if not name.isprintable():
            raise AlignvecError(f"{file}: {name!r} is no name for a tensor")
        if len(shape) > _DIMENSIONS or prod(max(1, size) for size in shape) >= 2**63:
            # The second may well be: without values, where one of the sizes is 0.
            raise AlignvecError(f"{file}: {name} is of a shape that no tensor has")
        if entry["dtype"] not in dtypes:
            raise AlignvecError(f"{file}: {name} is of dtype {entry['dtype']}, which is not read")
        start = 8 + length + entry["data_offsets"][0]
        places[name] = _Place(file, start, dtypes[entry["dtype"]], shape)
    return places


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


def open_weights(source: str | Path | PreTrainedModel) -> Weights:
    """Weights of a base in any of its forms, or of a loaded model. A tied tensor appears once."""
    if isinstance(source, str | Path):
        return CheckpointWeights(find_base(str(source)))
    return LiveWeights(source)
