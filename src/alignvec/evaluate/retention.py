"""Retention: what is left of the model's abilities on plain prose of no domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch

from alignvec.knobs.model import KnobModel
from alignvec.knobs.setting import Setting

_LENGTH = 96  # tokens of a piece of neutral text


@dataclass(frozen=True)
class Retention:
    """How far a turned model is from its base on neutral prose.

    Attributes:
        kl: KL(base || turned), nats a token.
        perplexity: as a multiple of the base's.
    """

    kl: float
    perplexity: float


class RetentionProbe:
    """Measures a live model on the neutral prose that ships with the package."""

    def __init__(self, model: KnobModel) -> None:
        self.model = model
        text = (resources.files("alignvec.data") / "builtin" / "neutral.txt").read_text("utf-8")
        ids = [model.tokenizer(line)["input_ids"][:_LENGTH] for line in text.splitlines()]
        self._ids = [torch.tensor([one], device=model.model.device) for one in ids if len(one) > 1]
        with model.at({}):
            self._base = [self._logprobs(one) for one in self._ids]
        self._base_loss = self._loss(self._base)
        self._cache: dict[tuple[tuple[str, float], ...], Retention] = {}

    def __call__(self, setting: Setting) -> Retention:
        """What the model is like under a setting. Nothing is measured twice."""
        key = tuple(setting.items())
        if key not in self._cache:
            self._cache[key] = self._measure(setting)
        return self._cache[key]

    def _measure(self, setting: Setting) -> Retention:
        with self.model.at(setting):
            turned = [self._logprobs(one) for one in self._ids]
        pairs = zip(self._base, turned, strict=True)
        kl = np.concatenate([(b.exp() * (b - t)).sum(-1).cpu().numpy() for b, t in pairs])
        return Retention(float(kl.mean()), float(np.exp(self._loss(turned) - self._base_loss)))

    def _logprobs(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self.model.model(ids).logits[0, :-1]
        return logits.float().log_softmax(-1)

    def _loss(self, logprobs: Sequence[torch.Tensor]) -> float:
        losses = [
            -logs.gather(1, ids[0, 1:, None]).mean()
            for logs, ids in zip(logprobs, self._ids, strict=True)
        ]
        return float(sum(losses) / len(losses))
