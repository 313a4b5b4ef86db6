"""The weights of a checkpoint or a model as a mapping from name to tensor, read when asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignvec.errors import AlignvecError
from alignvec.files import read_json
from alignvec.models import checkpoint_files, find_base, one_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_SAMPLES = 64  # values of a tensor that go into the fingerprint


class CheckpointWeights(Mapping[str, "torch.Tensor"]):
    """The safetensors of a folder. Tensors are memory-mapped: nothing is read before it is used.

    Raises:
        AlignvecError: no safetensors, a truncated file, or a shard that the index names is missing.
    """

    def __init__(self, folder: Path, only: str | None = None) -> None:
        """Args: only: this one file of the folder, instead of the whole checkpoint."""
        from safetensors import safe_open

        self.folder = folder
        self._files: dict[str, Any] = {}
        for file in [folder / only] if only else _files_of_checkpoint(folder):
            if not file.exists():
                raise AlignvecError(f"{file} is missing")
            try:
                opened: Any = safe_open(file, framework="pt")
            except Exception as error:  # the reader has exceptions of its own
                raise AlignvecError(
                    f"{file} is truncated or no safetensors file: {one_line(error)}"
                ) from None
            self._files.update(dict.fromkeys(opened.keys(), opened))
        self._drop_tied_head()

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _drop_tied_head(self) -> None:
        """Some checkpoints store a tied output head twice; a live model has it once."""
        config_file = self.folder / "config.json"
        config = read_json(config_file) if config_file.exists() else {}
        if isinstance(config, dict) and config.get("tie_word_embeddings", False):
            self._files.pop("lm_head.weight", None)


def _files_of_checkpoint(folder: Path) -> list[Path]:
    """Those that transformers would load; some repositories hold the weights a second time."""
    index = folder / "model.safetensors.index.json"
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
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise AlignvecError(f"{index} names '{name}', which is not a file beside it")
        if not (index.parent / name).exists():
            raise AlignvecError(f"{index.parent / name} is missing, though the index names it")
        files.append(index.parent / name)
    return files


def open_weights(source: str | Path | PreTrainedModel) -> Mapping[str, torch.Tensor]:
    """Weights of a base in any of its forms, or of a loaded model. A tied tensor appears once."""
    if isinstance(source, str | Path):
        return CheckpointWeights(find_base(str(source)))
    return {name: parameter.detach() for name, parameter in source.named_parameters()}


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """A short hash that tells one base from another, whatever floating dtype it is held in.

    Names, shapes and 64 evenly spaced values a tensor, rounded to bfloat16: a float32 base and its
    bfloat16 copy agree, another model or a further fine-tuned one does not. It reads a few pages
    of each tensor, so it is as quick for 70B parameters as for 70M. It guards against mistakes,
    not against forgery.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = tensor.reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]
        digest.update(sample.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
