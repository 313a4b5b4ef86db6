"""Rows: sequences of different lengths and settings that share forward passes.

Rows are padded on the left, so the newest token of all is in the last column, and the cache of some
rows can be put below that of others: what has just been read joins what is being written. Each row
keeps its own positions and its own strengths; no row sees another.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from alignvec.errors import AlignvecError
from alignvec.knobs.gate import Gate


class Joinable:
    """A gated model whose rows can join and leave between forward passes."""

    def __init__(self, model: PreTrainedModel, gate: Gate) -> None:
        """Raises: AlignvecError: the model keeps more of the past than a key and a value a token,
        so rows that were read apart cannot be put together.
        """
        self.model, self.gate = model, gate
        self._layers = _layers(model)
        taken = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in taken
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}

    def rows(self, strengths: torch.Tensor) -> Rows:
        """Rows of no tokens yet.

        Args:
            strengths: [R, K] float32, of each row, columns in the order of the gate's vectors.
        """
        layers = [_Growing() if keeps else DummyLayer() for keeps in self._layers]
        nothing = torch.zeros(len(strengths), 0, dtype=torch.bool, device=self.model.device)
        return Rows(self, Cache(layers=layers), nothing, strengths)

    def __call__(self, rows: Rows, tokens: torch.Tensor) -> torch.Tensor:
        """[R, V] float32: the logits after the last of `tokens` [R, T], which `rows` has in its
        mask already.
        """
        positions = (rows.mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        told = {"position_ids": positions} if self._takes_positions else {}
        with torch.inference_mode(), self.gate.rows(rows.turned):
            logits: torch.Tensor = self.model(
                input_ids=tokens, attention_mask=rows.mask.long(), past_key_values=rows.cache,
                use_cache=True, **told, **self._last,
            ).logits  # fmt: skip
        return logits[:, -1].float()


class Rows:
    """R rows.

    Attributes:
        mask: [R, T] bool, false where a row is padded.
        strengths: [R, K] float32.
    """

    def __init__(
        self, model: Joinable, cache: Cache, mask: torch.Tensor, strengths: torch.Tensor
    ) -> None:
        self._model, self.cache, self.mask, self.strengths = model, cache, mask, strengths

    def __len__(self) -> int:
        return len(self.mask)

    @cached_property
    def turned(self) -> torch.Tensor | None:
        """The strengths; None if none is turned: the base, at its speed."""
        return self.strengths if self.strengths.any() else None

    def read(self, tokens: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        """Read on.

        Args:
            tokens: [R, N] int64.
            real: [R, N] bool, false where it is padding, which comes first; None: all are tokens.

        Returns:
            [R, V] float32, the logits of what follows.
        """
        tokens = tokens.to(self.mask.device)
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
        self.mask = torch.cat([self.mask, real.to(self.mask.device)], 1)
        return self._model(self, tokens)

    def select(self, which: Sequence[int]) -> None:
        """Only these rows from here on, in this order; one that comes again becomes two."""
        index = torch.tensor(which, dtype=torch.long, device=self.mask.device)
        self.mask, self.strengths = self.mask[index], self.strengths[index.cpu()]
        vars(self).pop("turned", None)
        padding = int((~self.mask).cumprod(1).sum(1).min()) if len(which) else 0
        self.mask = self.mask[:, padding:]
        for layer in self._kept:
            layer.select(index, padding)

    def join(self, others: Rows) -> None:
        """Put other rows below these."""
        length = max(self.mask.shape[1], others.mask.shape[1])
        here, there = (length - one.mask.shape[1] for one in (self, others))
        self.mask = torch.cat([pad(self.mask, (here, 0)), pad(others.mask, (there, 0))])
        self.strengths = torch.cat([self.strengths, others.strengths])
        vars(self).pop("turned", None)
        for layer, other in zip(self._kept, others._kept, strict=True):
            layer.join(other, length)

    @property
    def _kept(self) -> list[_Growing]:
        return [layer for layer in self.cache.layers if isinstance(layer, _Growing)]


class _Growing(DynamicLayer):
    """Keys and values in a buffer with room behind them: a token is written, not all of the past
    again, as `DynamicLayer` does.
    """

    _ROOM = 64  # tokens

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of all tokens, [R, H, T, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        length = before + key_states.shape[-2]
        if not self._buffers or length > self._buffers[0].shape[-2]:
            old = (self.keys, self.values) if before else (key_states[..., :0, :],) * 2
            self._hold(old, length)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., before:length, :] = new
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)
        return self.keys, self.values

    def select(self, index: torch.Tensor, padding: int) -> None:
        """Keep some rows, without the first columns."""
        kept = [part[index, :, padding:] for part in (self.keys, self.values)]
        self._hold(kept, kept[0].shape[-2])

    def join(self, other: _Growing, length: int) -> None:
        """The rows of both, padded on the left to a length."""
        both = [
            torch.cat([pad(part, (0, 0, length - part.shape[-2], 0)) for part in parts])
            for parts in ((self.keys, other.keys), (self.values, other.values))
        ]
        self._hold(both, length)

    def _hold(self, parts: Sequence[torch.Tensor], length: int) -> None:
        """Move keys and values into buffers with room for more than `length` tokens."""
        room = length - parts[0].shape[-2] + self._ROOM
        self._buffers = [pad(part, (0, 0, 0, room)) for part in parts]
        self.keys, self.values = (
            buffer[..., : part.shape[-2], :]
            for buffer, part in zip(self._buffers, parts, strict=True)
        )


def _layers(model: PreTrainedModel) -> list[bool]:
    """Of each layer whether it keeps keys and values.

    A window that slides over the past is left to the attention mask, so all layers keep all of it.
    """
    refused = AlignvecError(
        f"{type(model).__name__} cannot be served: rows that join between steps need a cache of "
        "keys and values alone, and this model keeps another state; use `alignvec generate`, or "
        "fold the setting and serve the checkpoint elsewhere"
    )
    config: Any = model.config
    if config.is_encoder_decoder or model._is_stateful:
        raise refused
    if not model._supports_default_dynamic_cache():
        raise refused
    layers = DynamicCache(config=config).layers
    plain = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
    chunked = getattr(config.get_text_config(), "attention_chunk_size", None)
    if chunked or not layers or any(type(layer) not in plain for layer in layers):
        raise refused
    return [not isinstance(layer, DummyLayer) for layer in layers]
