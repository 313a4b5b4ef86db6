"""The weights of the model in a checkpoint folder, by the names of the loaded model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel

from alignvec.base.checkpoint import CheckpointWeights
from alignvec.base.source import cache_folder
from alignvec.base.weights import row_count
from alignvec.errors import AlignvecError
from alignvec.files import read_object, validated, write_json

if TYPE_CHECKING:
    from alignvec.base.architecture import Architecture

_CODES = (torch.int8, torch.uint8)
_SCALES = ("_scale", "_scale_inv")
_ROWS = 4096  # that two tensors are compared by


class _Layout(BaseModel):
    """What transformers makes of the names in a checkpoint's files; see `Architecture`."""

    names: dict[str, str]
    missing: list[str]
    tied: dict[str, str]
    transposed: list[str] | None


class ModelWeights(CheckpointWeights):
    """What transformers loads of a checkpoint; see `architecture` for the names.

    A tied tensor appears once, even if the files hold it twice; a head that differs from the
    embedding that it is tied to counts, as in transformers, whatever the config says.

    Attributes:
        name_of: the name of each tensor, by its name in the files; what is no weight keeps that.
        stored: the tensors by their names in the files, with those that are no weights.

    Raises:
        AlignvecError: a weight is in none of the files, or they hold codes of a quantisation that
            the config does not tell.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.stored = CheckpointWeights(folder)
        names, missing = self._layout.names, self._layout.missing
        if missing:
            if packed := self._packed(names.values()):
                raise AlignvecError(
                    f"{folder} holds {packed[0]}, experts in one tensor as they are when loaded; "
                    "save the model with each apart (save_pretrained, save_original_format=True)"
                )
            raise AlignvecError(f"{folder} is incomplete: {missing[0]} is in none of its files")
        self._refuse_codes()
        self.name_of = {key: names.get(key, key) for key in self.stored}
        self.beside = frozenset(self.stored.keys() - names.keys())
        turned = self._layout.transposed
        self.transposed = None if turned is None else frozenset(turned)
        # Of a weight that is there twice transformers takes the first.
        entries = {name: self.stored._entries[key] for key, name in reversed(names.items())}
        self._entries = dict(reversed(entries.items()))
        self.tied = self._ties(self._layout.tied)

    def names(self, others: Iterable[str]) -> dict[str, str]:
        others = list(others)
        if all(name in self or name in self.tied for name in others):
            return {name: name for name in others}
        known = self.architecture
        return super().names(others) if known is None else known.names(others)

    @property
    def fingerprints(self) -> Iterator[str]:
        yield self.fingerprint
        yield self.stored.fingerprint  # 0.1 went by the names in the files

    @cached_property
    def architecture(self) -> Architecture | None:
        file = self.folder / "config.json"
        config = file.read_text(encoding="utf-8") if file.is_file() else ""
        return _architecture(self.folder, config, tuple(self.stored))

    @cached_property
    def _layout(self) -> _Layout:
        """Asked of transformers once for a config and the names in its files, then remembered."""
        config = self.folder / "config.json"
        asked = [read_object(config) if config.is_file() else None, sorted(self.stored)]
        key = json.dumps([*asked, version("transformers"), version("alignvec")])
        file = cache_folder() / "layouts" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        if file.is_file():
            with suppress(AlignvecError):  # damaged: made anew
                return validated(_Layout, read_object(file), file)
        layout = self._ask()
        with suppress(OSError, AlignvecError):  # no place to remember it
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, layout.model_dump())
        return layout

    def _ask(self) -> _Layout:
        known, keys = self.architecture, list(self.stored)
        if known is None:
            return _Layout(names={key: key for key in keys}, missing=[], tied={}, transposed=None)
        names = known.names(keys)
        return _Layout(
            names=names,
            missing=known.missing(names.values()),
            tied=known.tied,
            transposed=sorted(known.transposed),
        )

    def _packed(self, names: Iterable[str]) -> list[str]:
        """Those of tensors that the files of a model have in parts."""
        homes = {} if self.architecture is None else self.architecture.packs()
        return [name for name in names if name in homes]

    def _ties(self, expected: Mapping[str, str]) -> dict[str, str]:
        """Those that hold in these files, by transformers' rules; one of each pair is taken out."""
        entries = self._entries
        assert isinstance(entries, dict)
        tied = {}
        for target, source in expected.items():
            if target in entries and source in entries:
                if not self._equal(target, source):
                    continue
                del entries[target]
            elif target in entries:
                entries[source] = entries.pop(target)
            tied[target] = source
        return tied

    def _equal(self, one: str, other: str) -> bool:
        if (self.shape(one), self.dtype(one)) != (self.shape(other), self.dtype(other)):
            return False
        rows = row_count(self.shape(one))
        return all(
            torch.equal(
                *(self.rows(name, start, min(start + _ROWS, rows)) for name in (one, other))
            )
            for start in range(0, rows, _ROWS)
        )

    def _refuse_codes(self) -> None:
        # Some call the scale of `down_proj.weight` `down_proj.scale`; a norm has a scale, too.
        scaled = {
            key.rpartition(".")[0] for key in self.stored if "scale" in key.rpartition(".")[2]
        }
        for key in self._layout.names:
            dtype = self.stored.dtype(key)
            coded = dtype in _CODES or (dtype.itemsize == 1 and key.rpartition(".")[0] in scaled)
            if coded or any(f"{key}{scale}" in self.stored for scale in _SCALES):
                raise AlignvecError(
                    f"{self.folder}: {key} is quantised, but config.json has no "
                    "quantization_config that says how; give the plain weights"
                )


@lru_cache(8)
def _architecture(folder: Path, config: str, stored: tuple[str, ...]) -> Architecture | None:
    # transformers takes longer to import than a fold takes to run.
    from alignvec.base.architecture import Architecture

    return Architecture.of_checkpoint(folder, stored)
