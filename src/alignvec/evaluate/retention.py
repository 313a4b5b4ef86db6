"""Retention: what is left of the model's abilities on plain prose of no domain."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch

from alignvec.base.logprobs import Row
from alignvec.errors import AlignvecError
from alignvec.evaluate.measurable import Measurable
from alignvec.knobs.model import KnobModel
from alignvec.knobs.setting import Setting

logger = logging.getLogger(__name__)

_LENGTH = 96  # tokens of a piece of neutral text
NO_KL = "KL from the base takes the probabilities of all tokens, which only transformers gives here"


@dataclass(frozen=True)
class Retention:
    """How far a turned model is from its base on neutral prose.

    Attributes:
        kl: KL(base || turned), nats a token; None where it was not measured.
        perplexity: as a multiple of the base's.
    """

    kl: float | None
    perplexity: float


class RetentionProbe:
    """Measures a model on the neutral prose that ships with the package: of one that only says how
    likely texts are, the perplexity alone.
    """

    def __init__(self, model: Measurable) -> None:
        self.model = model
        text = (resources.files("alignvec.data") / "builtin" / "neutral.txt").read_text("utf-8")
        ids = [model.tokenizer(line)["input_ids"][:_LENGTH] for line in text.splitlines()]
        self._ids = [one for one in ids if len(one) > 1]
        self._cache: dict[tuple[tuple[str, float], ...], Retention] = {}
        self._live = model if isinstance(model, KnobModel) else None
        self._base: list[torch.Tensor] = []
        if self._live:
            self._base = self._logprobs(self._live, {})
            self._base_loss = self._loss(self._base)
        else:
            logger.warning("not measured: %s", NO_KL)
            self._base_loss = self._loss_of_scores({})

    @property
    def has_kl(self) -> bool:
        """Whether the model gives the KL."""
        return self._live is not None

    def __call__(self, setting: Setting) -> Retention:
        """What the model is like under a setting. Nothing is measured twice."""
        key = tuple(setting.items())
        if key not in self._cache:
            self._cache[key] = self._measure(setting)
        return self._cache[key]

    def kl(self, setting: Setting) -> float:
        """The divergence alone.

        Raises:
            AlignvecError: this model does not give it.
        """
        found = self(setting).kl
        if found is None:
            raise AlignvecError(NO_KL)
        return found

    def _measure(self, setting: Setting) -> Retention:
        if self._live is None:
            return Retention(None, float(np.exp(self._loss_of_scores(setting) - self._base_loss)))
        turned = self._logprobs(self._live, setting)
        pairs = zip(self._base, turned, strict=True)
        kl = np.concatenate([(b.exp() * (b - t)).sum(-1).cpu().numpy() for b, t in pairs])
        return Retention(float(kl.mean()), float(np.exp(self._loss(turned) - self._base_loss)))

    def _logprobs(self, model: KnobModel, setting: Setting) -> list[torch.Tensor]:
        """Of each piece, [T - 1, V]."""
        with model.at(setting), torch.inference_mode():
            return [
                model.model(torch.tensor([one], device=model.model.device))
                .logits[0, :-1].float().log_softmax(-1)
                for one in self._ids
            ]  # fmt: skip

    def _loss(self, logprobs: Sequence[torch.Tensor]) -> float:
        losses = [
            -logs.gather(1, torch.tensor(ids[1:], device=logs.device)[:, None]).mean()
            for logs, ids in zip(logprobs, self._ids, strict=True)
        ]
        return float(sum(losses) / len(losses))

    def _loss_of_scores(self, setting: Setting) -> float:
        """The same of a model that says how likely each piece is, behind its first token."""
        rows = [Row(ids[:1], [ids[1:]]) for ids in self._ids]
        scores = self.model.scores(rows, [setting] * len(rows))
        return -sum(score for (score,) in scores) / len(scores)
