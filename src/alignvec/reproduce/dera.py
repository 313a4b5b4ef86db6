"""DeRa: decoding-time realignment (Liu et al. 2024, arXiv 2402.02992).

    logits = (1 - lambda) base + lambda aligned

at every token, from two models that have read the same text. Here they are one: each row goes
through the gate twice, once with the knobs at 0 and once at their aligned end, in one forward pass
of twice the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alignvec.base.likelihood import response_scores
from alignvec.base.messages import Messages
from alignvec.data import Record
from alignvec.errors import AlignvecError
from alignvec.evaluate.rates import response_rows
from alignvec.knobs.model import KnobModel
from alignvec.knobs.setting import SettingLike

_TOKENS = 1024  # a forward pass, of twice as many: all their logits are mixed in float32
_ROWS = ("input_ids", "attention_mask", "position_ids")


class DeRa:
    """A base realigned while it decodes: a `Subject`."""

    identity: str | None = None

    def __init__(self, model: KnobModel, aligned: SettingLike, strength: float) -> None:
        """Nothing is left on the model between the calls.

        Args:
            aligned: the setting of the aligned model, `{"medical": 1}`.
            strength: lambda, any real number; 0 is the base, 1 the aligned model.

        Raises:
            AlignvecError: the model can only fold, or a knob is unknown.
        """
        if model.mode == "fold":
            raise AlignvecError("DeRa runs two settings at once: not in mode 'fold'")
        self.model, self.aligned, self.strength = model, dict(aligned), strength
        self._settings = model.gate.tensor([{}, self.aligned])

    def scores(self, records: Sequence[Record], levels: Sequence[str]) -> NDArray[np.float64]:
        """[Q, L]: s(l) of each record's response of each level, in nats a token."""
        rows = response_rows(self.model.tokenizer, records, levels)
        with self.model.at({}), self.model.gate.rows(self._settings):
            scores = response_scores(
                self.model.model, rows, _TOKENS, within=lambda _: self._realigned()
            )
        return np.array(scores)

    def answers(self, queries: Sequence[Messages], max_new_tokens: int) -> list[str]:
        """A greedy answer to each query, all in one batch."""
        # Each query twice: both write the token that is likeliest in the mixture, and so the same.
        twice = [*queries, *queries]
        knobs: list[SettingLike] = [{}] * len(queries) + [self.aligned] * len(queries)
        found = self.model.generate(
            twice, knobs, max_new_tokens, logits_processor=[self._mixed_scores]
        )
        return found[: len(queries)]

    def _mixed_scores(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self._mixed(scores).repeat(2, 1)

    def _mixed(self, logits: torch.Tensor) -> torch.Tensor:
        """[2R, ..., V], base above aligned -> [R, ..., V] float32."""
        base, aligned = logits.float().chunk(2)
        mixed = (1 - self.strength) * base + self.strength * aligned
        # A token that one of them may not write is out, whatever it is multiplied by.
        return mixed.masked_fill(base.isneginf() | aligned.isneginf(), -torch.inf)

    @contextmanager
    def _realigned(self) -> Iterator[None]:
        """Within, a forward pass takes R rows and returns the logits of R, having read 2R."""

        def double(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            rows = {name: torch.cat([kwargs[name]] * 2) for name in _ROWS if name in kwargs}
            return args, kwargs | rows

        def mix(module: Any, args: Any, output: Any) -> Any:
            output.logits = self._mixed(output.logits)
            return output

        model = self.model.model
        handles = [
            model.register_forward_pre_hook(double, with_kwargs=True),
            model.register_forward_hook(mix),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
