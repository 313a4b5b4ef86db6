"""An alignment vector on disk: safetensors and one JSON file.

    full      alignment_vector.json, model.safetensors (or shards with an index),
              residual.safetensors where needed
    low_rank  alignment_vector.json, adapter_model.safetensors, adapter_config.json

A `low_rank` folder is a PEFT LoRA adapter with scaling 1, so PEFT and vLLM load it unchanged.
`residual.safetensors` holds the few values that float32 deltas cannot (see `delta.Dense`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from alignvec.errors import AlignvecError
from alignvec.files import read_json, whole_folder, write_json
from alignvec.models import one_line, parse_dtype
from alignvec.vector.alignment_vector import AlignmentVector, BaseId
from alignvec.vector.delta import Delta, Dense, LowRank
from alignvec.vector.weights import CheckpointWeights

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
METADATA = "alignment_vector.json"
RESIDUAL = "residual.safetensors"


class _Base(BaseModel):
    id: str
    fingerprint: str


class _Tensor(BaseModel):
    shape: list[int]
    rank: int | None = None
    energy: float | None = None  # share kept by a compression
    transposed: bool = False


class _Metadata(BaseModel):
    """`alignment_vector.json`."""

    format_version: int
    name: str
    kind: Literal["full", "low_rank"]
    dtype: str
    base: _Base
    tensors: dict[str, _Tensor]
    rank: int | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    calibration: dict[str, Any] | None = None


def save(vector: AlignmentVector, folder: Path, dtype: str | None, overwrite: bool) -> Path:
    """See `AlignmentVector.save_pretrained`."""
    import torch
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import save_file

    chosen = parse_dtype(dtype) or vector.dtype
    ranks = [delta.rank for delta in vector.deltas.values() if isinstance(delta, LowRank)]
    rank = max(ranks, default=None) if vector.kind == "low_rank" else None
    metadata = _Metadata(
        format_version=FORMAT_VERSION,
        name=vector.name,
        kind=vector.kind,  # type: ignore[arg-type]
        dtype=str(chosen).removeprefix("torch."),
        base=_Base(id=vector.base.id, fingerprint=vector.base.fingerprint),
        tensors={
            name: _Tensor(
                shape=list(delta.shape),
                rank=delta.rank if rank and isinstance(delta, LowRank) else None,
                transposed=delta.transposed if isinstance(delta, LowRank) else False,
            )
            for name, delta in vector.deltas.items()
        },
        rank=rank,
        training=dict(vector.training),
        calibration=None if vector.calibration is None else dict(vector.calibration),
    )
    with whole_folder(folder, overwrite) as partial:
        if rank is not None:
            save_file(_adapter_tensors(vector, rank, chosen), partial / "adapter_model.safetensors")
            write_json(partial / "adapter_config.json", _adapter_config(vector, rank))
        else:
            dense = {name: delta.dense().to(chosen) for name, delta in vector.deltas.items()}
            if dense:
                save_torch_state_dict(
                    {name: tensor.contiguous() for name, tensor in dense.items()}, partial
                )
            else:  # an empty vector is a file without tensors
                save_file({}, partial / "model.safetensors")
            residuals = _residual_tensors(vector) if chosen == torch.float32 else {}
            if residuals:
                save_file(residuals, partial / RESIDUAL)
        write_json(partial / METADATA, metadata.model_dump(exclude_none=True))
    return folder


def _adapter_tensors(
    vector: AlignmentVector, rank: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """PEFT's names; factors of a smaller rank padded with zeros, since readers want one rank."""
    from torch.nn.functional import pad

    tensors = {}
    for name, delta in vector.deltas.items():
        assert isinstance(delta, LowRank)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        missing = rank - delta.rank
        a, b = pad(delta.a, (0, 0, 0, missing)), pad(delta.b, (0, missing))
        tensors[f"{module}.lora_A.weight"] = a.to(dtype).contiguous()
        tensors[f"{module}.lora_B.weight"] = b.to(dtype).contiguous()
    return tensors


def _adapter_config(vector: AlignmentVector, rank: int) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": vector.base.id,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(
            isinstance(delta, LowRank) and delta.transposed for delta in vector.deltas.values()
        ),
        # Full names, so that only the layers that have factors are touched.
        "target_modules": sorted(name.removesuffix(".weight") for name in vector.deltas),
        "inference_mode": True,
    }


def _residual_tensors(vector: AlignmentVector) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, delta in vector.deltas.items():
        if isinstance(delta, Dense) and delta.residual is not None:
            tensors[f"{name}.indices"] = delta.residual.indices().contiguous()
            tensors[f"{name}.values"] = delta.residual.values().contiguous()
    return tensors


def load(source: str | Path) -> AlignmentVector:
    """See `AlignmentVector.from_pretrained`."""
    folder = _find(source)
    if not (folder / METADATA).exists():
        raise AlignvecError(
            f"{folder} is no alignment vector: it has no {METADATA}; make one with alignvec extract"
        )
    content = read_json(folder / METADATA)
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise AlignvecError(
            f"{folder / METADATA} is of format {version}; this alignvec reads up to "
            f"{FORMAT_VERSION}: upgrade it"
        )
    try:
        metadata = _Metadata.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise AlignvecError(f"{folder / METADATA}: field '{place}': {first['msg']}") from None
    deltas = _load_low_rank(folder, metadata) if metadata.kind == "low_rank" else _load_full(folder)
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
    return AlignmentVector(
        deltas,
        BaseId(metadata.base.id, metadata.base.fingerprint),
        metadata.name,
        metadata.training,
        metadata.calibration,
    )


def _load_full(folder: Path) -> dict[str, Delta]:
    import torch

    sharded = (folder / "model.safetensors.index.json").exists()
    weights = CheckpointWeights(folder, None if sharded else "model.safetensors")
    residuals = CheckpointWeights(folder, RESIDUAL) if (folder / RESIDUAL).exists() else {}
    deltas: dict[str, Delta] = {}
    for name in weights:
        values = weights[name]
        if not values.is_floating_point() or not bool(values.isfinite().all()):
            raise AlignvecError(f"{folder}: {name} holds NaN, infinity or no floating numbers")
        residual = None
        if f"{name}.indices" in residuals:
            try:
                residual = torch.sparse_coo_tensor(
                    residuals[f"{name}.indices"],
                    residuals[f"{name}.values"],
                    values.shape,
                    check_invariants=True,
                ).coalesce()
            except (KeyError, RuntimeError) as error:
                raise AlignvecError(
                    f"{folder / RESIDUAL}: {name} is damaged: {one_line(error)}"
                ) from None
        deltas[name] = Dense(values, residual)
    return deltas


def _load_low_rank(folder: Path, metadata: _Metadata) -> dict[str, Delta]:
    weights = CheckpointWeights(folder, "adapter_model.safetensors")
    deltas: dict[str, Delta] = {}
    for name, expected in metadata.tensors.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        try:
            a, b = (weights[f"{module}.lora_{part}.weight"] for part in "AB")
        except KeyError:
            raise AlignvecError(f"{folder}: the factors of {name} are missing") from None
        if not bool(a.isfinite().all() and b.isfinite().all()):
            raise AlignvecError(f"{folder}: {name} holds NaN or infinity")
        rank = expected.rank or a.shape[0]  # the rest is padding
        deltas[name] = LowRank(a[:rank], b[:, :rank], expected.transposed)
    return deltas


def _find(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.exists() or "/" not in str(source) or path.is_absolute() or str(source).startswith("."):
        if not path.is_dir():
            raise AlignvecError(f"no alignment vector at '{source}': no such folder")
        return path
    from alignvec.models import find_base

    return find_base(str(source))


def push(vector: AlignmentVector, repo_id: str, private: bool) -> str:
    """See `AlignmentVector.push_to_hub`."""
    import tempfile

    from huggingface_hub import HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        saved = vector.save_pretrained(Path(folder) / "vector")
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=saved))
        except Exception as error:
            raise AlignvecError(f"cannot push to '{repo_id}': {one_line(error)}") from error
