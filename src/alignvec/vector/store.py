"""An alignment vector on disk: safetensors and one JSON file.

    full      alignment_vector.json, model.safetensors (or shards with an index),
              residual-*.safetensors where needed
    low_rank  alignment_vector.json, adapter_model.safetensors, adapter_config.json, and
              model.safetensors if some deltas are dense

A `low_rank` folder is a PEFT LoRA adapter with scaling 1, so PEFT and vLLM load it unchanged; they
do not see the dense deltas. `residual-*.safetensors` hold the few values of a tensor that float32
deltas cannot (see `delta.Dense`). In int8 (format 2) the dense matrices are as `int8` stores them;
factors, a hundredth of their size, are in bfloat16 then, and norms and biases in float32.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from safetensors.torch import save_file

from alignvec.base.checkpoint import INDEX, CheckpointWeights
from alignvec.base.dtypes import parse_dtype
from alignvec.base.identity import BaseId
from alignvec.base.source import VECTOR_FILE, find_folder
from alignvec.base.weights import all_finite
from alignvec.errors import AlignvecError, one_line
from alignvec.files import atomic_folder, file_state, read_object, validated, write_json
from alignvec.vector import int8
from alignvec.vector.adapter import write_adapter
from alignvec.vector.delta import Delta, Dense, Lazy, LowRank, is_computable, part_of_sparse
from alignvec.vector.model_delta import ModelDelta
from alignvec.vector.stream import Output, work_key, write_tensors

FORMAT_VERSION = 2  # the newest that is read; 1 is written unless int8 is in it
METADATA = VECTOR_FILE


def _line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters")
    return text


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return value


_Line = Annotated[str, AfterValidator(_line)]
_Plain = Annotated[dict[str, Any], AfterValidator(_plain)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)  # no "1" for 1


class _Base(_Strict):
    id: _Line
    fingerprint: _Line
    detail: _Line = ""


class _Tensor(_Strict):
    shape: list[Annotated[int, Field(ge=0)]]
    rank: int | None = Field(default=None, ge=1)
    energy: float | None = Field(default=None, ge=0, le=1)  # share kept by a compression
    transposed: bool = False


class _Metadata(_Strict):
    """`alignment_vector.json`."""

    format_version: int = Field(ge=1)
    name: _Line
    kind: Literal["full", "low_rank"]
    dtype: Literal["float64", "float32", "bfloat16", "float16", "int8"]
    base: _Base
    tensors: dict[str, _Tensor]
    rank: int | None = Field(default=None, ge=1)
    training: _Plain = Field(default_factory=dict)
    calibration: _Plain | None = None


def save(
    vector: ModelDelta, folder: Path, dtype: str | None = None, overwrite: bool = False
) -> Path:
    """See `AlignmentVector.save_pretrained`."""
    chosen = parse_dtype(dtype, on_disk=True) or vector.dtype
    factored = {n: delta for n, delta in vector.deltas.items() if isinstance(delta, LowRank)}
    dense = {n: delta for n, delta in vector.deltas.items() if n not in factored}
    if chosen == torch.int8 and not dense:
        chosen = torch.bfloat16  # factors alone: an adapter like any other
    eight_bit = chosen == torch.int8
    # What does not go in 8 bits does in these.
    factor_dtype, dense_dtype = (torch.bfloat16, torch.float32) if eight_bit else (chosen, chosen)
    rank = max((delta.rank for delta in factored.values()), default=None)
    content = {
        "format_version": 2 if eight_bit else 1,
        "name": vector.name,
        "kind": vector.kind,
        "dtype": str(chosen).removeprefix("torch."),
        "base": vars(vector.base),
        "tensors": {
            name: _describe(delta, name in vector.transposed)
            for name, delta in vector.deltas.items()
        },
        "rank": rank,
        "training": dict(vector.training),
        "calibration": None if vector.calibration is None else dict(vector.calibration),
    }
    metadata = validated(_Metadata, content, f"'{vector.name}' cannot be saved")
    work = work_key(vector.base.fingerprint, vector.base.detail, vector.origin(), str(chosen))
    with atomic_folder(folder, overwrite, work) as partial:
        if factored:
            write_adapter(partial, vector.base.id, factored, factor_dtype)
        if dense or not factored:
            outputs: dict[str, Output] = {}
            for index, (name, delta) in enumerate(dense.items()):
                if eight_bit and int8.fits(delta.shape):
                    outputs |= int8.quantised(name, delta)
                else:
                    residual = partial / f"residual-{index:05}.safetensors"
                    outputs[name] = _output(delta, dense_dtype, residual)
            write_tensors(partial, outputs)
        write_json(partial / METADATA, metadata.model_dump(exclude_none=True))
    return folder


def _describe(delta: Delta, transposed: bool) -> _Tensor:
    if not isinstance(delta, LowRank):
        return _Tensor(shape=list(delta.shape), transposed=transposed)
    return _Tensor(
        shape=list(delta.shape),
        rank=delta.rank,
        energy=delta.energy,
        transposed=delta.transposed,
    )


def _output(delta: Delta, dtype: torch.dtype, residual_file: Path) -> Output:
    """A dense delta as its rows are written; its residual goes to a file of its own at the end."""
    residuals: dict[int, torch.Tensor] = {}

    def rows(start: int, stop: int) -> torch.Tensor:
        part = delta.part(start, stop)
        if isinstance(part, Dense) and part.residual is not None and dtype == torch.float32:
            residuals[start] = part.residual
        return part.dense() if isinstance(part, LowRank) else part.values

    def done() -> None:
        if residuals:
            indices = [part.indices().clone() for _, part in sorted(residuals.items())]
            for start, moved in zip(sorted(residuals), indices, strict=True):
                moved[0] += start
            values = torch.cat([part.values() for _, part in sorted(residuals.items())])
            save_file({"indices": torch.cat(indices, 1), "values": values}, residual_file)
            residuals.clear()

    return Output(tuple(delta.shape), dtype, rows, done)


def load(source: str | Path) -> ModelDelta:
    """See `AlignmentVector.from_pretrained`."""
    folder = _find(source)
    if not (folder / METADATA).exists():
        raise AlignvecError(
            f"{folder} is no alignment vector: it has no {METADATA}; make one with alignvec extract"
        )
    content = read_object(folder / METADATA)
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise AlignvecError(
            f"{folder / METADATA} is of format {version}; this alignvec reads up to "
            f"{FORMAT_VERSION}: upgrade it"
        )
    metadata = validated(_Metadata, content, folder / METADATA)
    deltas: dict[str, Delta] = {}
    if metadata.kind == "low_rank":
        deltas.update(_load_factors(folder, metadata))
    if len(deltas) < len(metadata.tensors) or metadata.kind == "full":
        deltas.update(_open_dense(folder, metadata))
    for name, expected in metadata.tensors.items():
        if name not in deltas:
            raise AlignvecError(f"{folder}: {name} is in {METADATA} but not in the weights")
        if list(deltas[name].shape) != expected.shape:
            raise AlignvecError(
                f"{folder}: {name} has shape {list(deltas[name].shape)}, {METADATA} says "
                f"{expected.shape}"
            )
    if extra := sorted(deltas.keys() - metadata.tensors.keys()):
        raise AlignvecError(f"{folder}: {extra[0]} is in the weights but not in {METADATA}")
    return ModelDelta(
        deltas,
        BaseId(**metadata.base.model_dump()),
        metadata.name,
        metadata.training,
        metadata.calibration,
        frozenset(name for name, tensor in metadata.tensors.items() if tensor.transposed),
    )


def write_calibration(folder: Path, calibration: dict[str, Any]) -> None:
    """Put a calibration into the metadata of a vector on disk; nothing else of it changes.

    Raises:
        AlignvecError: there is no vector in the folder.
    """
    content = read_object(folder / METADATA)
    validated(_Metadata, content, folder / METADATA)
    write_json(folder / METADATA, {**content, "calibration": calibration})


def _open_dense(folder: Path, metadata: _Metadata) -> dict[str, Delta]:
    """The dense deltas, to be read when they are used."""
    weights = CheckpointWeights(folder, None if (folder / INDEX).exists() else "model.safetensors")
    dense = [name for name, tensor in metadata.tensors.items() if tensor.rank is None]
    residuals = {
        name: folder / f"residual-{index:05}.safetensors" for index, name in enumerate(dense)
    }
    deltas: dict[str, Delta] = {}
    for name in weights:
        if int8.is_scale(weights, name):
            continue
        if name in metadata.tensors and name not in residuals:
            raise AlignvecError(f"{folder}: {name} is there twice, dense and as factors")
        if weights.dtype(name) == torch.int8:
            deltas[name] = int8.dequantised(weights, name, folder)
            continue
        if not is_computable(weights.dtype(name)):
            raise AlignvecError(f"{folder}: {name} is {weights.dtype(name)}, no delta")
        residual = None
        if name in residuals and residuals[name].exists():
            residual = _load_residual(residuals[name], weights.shape(name))
        deltas[name] = _stored(weights, name, residual, file_state(residuals.get(name, folder)))
    return deltas


def _stored(
    weights: CheckpointWeights, name: str, residual: torch.Tensor | None, state: object
) -> Lazy:
    def read(start: int, stop: int) -> Dense:
        return Dense(weights.rows(name, start, stop), part_of_sparse(residual, start, stop))

    return Lazy(weights.shape(name), weights.dtype(name), read, (weights, str(state)))


def _load_residual(file: Path, shape: tuple[int, ...]) -> torch.Tensor:
    weights = CheckpointWeights(file.parent, file.name)
    try:
        indices, values = weights["indices"], weights["values"]
        if values.ndim != 1 or values.dtype != torch.float32:
            raise AlignvecError(f"{file} is damaged: its values are no list of float32")
        residual = torch.sparse_coo_tensor(indices, values, shape or (1,), check_invariants=True)
        residual = residual.coalesce()
    except (KeyError, RuntimeError) as error:
        raise AlignvecError(f"{file} is damaged: {one_line(error)}") from None
    if not all_finite(residual.values()):
        raise AlignvecError(f"{file} holds NaN or infinity")
    return residual


def _load_factors(folder: Path, metadata: _Metadata) -> dict[str, LowRank]:
    weights = CheckpointWeights(folder, "adapter_model.safetensors")
    deltas, unclaimed = {}, set(weights)
    for name, expected in metadata.tensors.items():
        if expected.rank is None:
            continue
        if not name.endswith(".weight"):
            raise AlignvecError(f"{folder}: {name} is no weight of a layer, yet has a rank")
        module = f"base_model.model.{name.removesuffix('.weight')}"
        try:
            a, b = (weights[f"{module}.lora_{part}.weight"] for part in "AB")
        except KeyError:
            raise AlignvecError(f"{folder}: the factors of {name} are missing") from None
        delta = LowRank(a, b, expected.transposed, expected.energy)
        unclaimed -= {f"{module}.lora_{part}.weight" for part in "AB"}
        delta.check(f"{folder}: {name}")
        rank = expected.rank  # the rest is padding
        if rank > delta.rank or a[rank:].any() or b[:, rank:].any():
            raise AlignvecError(f"{folder}: {name} has factors of rank {delta.rank}, not {rank}")
        deltas[name] = dataclasses.replace(delta, a=a[:rank], b=b[:, :rank])
    if unclaimed:
        raise AlignvecError(f"{folder}: {min(unclaimed)} is in the weights but not in {METADATA}")
    return deltas


def _find(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.exists() or "/" not in str(source) or path.is_absolute() or str(source).startswith("."):
        if not path.is_dir():
            raise AlignvecError(f"no alignment vector at '{source}': no such folder")
        return path
    return find_folder(str(source))
