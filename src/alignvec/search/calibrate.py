"""Measure a knob once, so that people can ask for a level or a share instead of a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from alignvec.data import Record
from alignvec.errors import AlignvecError
from alignvec.knobs import KnobModel
from alignvec.knobs.calibration import Calibration
from alignvec.search.scorer import Scorer

if TYPE_CHECKING:
    import torch

    from alignvec.search.scorer import Array

_FINE = 0.05  # between two strengths of the curves
_LENGTH = 96  # tokens of a piece of neutral text


def calibrate(
    model: KnobModel,
    knob: str,
    records: Sequence[Record],
    levels: Sequence[str],
    limits: tuple[float, float] = (-3.0, 3.0),
    steps: int = 13,
    most_kl: float = 0.5,
    most_perplexity: float = 1.5,
    on_pass: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Turn a knob from one limit to the other and read off what it does.

    The scores are interpolated query by query between the strengths that are measured; rates never
    fall along the curve (isotonic regression), so every share has one strength.

    Args:
        records: queries of the knob's domain that its vector was not trained on.
        levels: from low to high.
        steps: strengths to measure, evenly spaced; 0 is added.
        most_kl: nats a token on neutral text that the turned model may be from the base.
        most_perplexity: times the base's, likewise.

    Raises:
        AlignvecError: an unknown knob, or no records.
    """
    from scipy.interpolate import PchipInterpolator
    from sklearn.isotonic import IsotonicRegression

    if knob not in model.vectors:
        raise AlignvecError(f"unknown knob '{knob}'; known: {', '.join(sorted(model.vectors))}")
    if not records:
        raise AlignvecError(f"knob '{knob}': no queries to calibrate on")
    strengths = np.unique([0.0, *np.linspace(*limits, steps)])
    scorer = Scorer(model, records, levels)
    column = scorer.knobs.index(knob)
    neutral = Neutral(model)
    scores, kept = [], []
    for done, strength in enumerate(strengths, start=1):
        setting = np.zeros(len(scorer.knobs))
        setting[column] = strength
        scores.append(scorer(setting))
        kl, perplexity = neutral.effect({knob: float(strength)})
        kept.append(kl <= most_kl and perplexity <= most_perplexity)
        on_pass(done, len(strengths))

    fine = np.arange(strengths[0], strengths[-1] + _FINE / 2, _FINE)
    wins = PchipInterpolator(strengths, np.array(scores))(fine).argmax(-1)  # [N, Q]
    rates = (wins[..., None] == np.arange(len(levels))).mean(1)  # [N, L]

    def rising(values: Array) -> list[float]:
        return [round(float(v), 4) for v in IsotonicRegression().fit_transform(fine, values)]

    low, high = _around_zero(strengths, np.array(kept))
    within = (fine >= low) & (fine <= high)
    return Calibration(
        queries=len(records),
        levels={
            level: _peak(fine[within], rates[within, index]) for index, level in enumerate(levels)
        },
        safe=(low, high),
        strengths=[round(float(strength), 4) for strength in fine],
        top=rising(rates[:, -1]),
        position=rising(wins.mean(1) / (len(levels) - 1)),
    )


def _peak(strengths: Array, rate: Array) -> float:
    """The middle of where a rate is within .02 of its highest, as the one next to zero."""
    near = strengths[rate >= rate.max() - 0.02]
    runs = np.split(near, np.flatnonzero(np.diff(near) > 1.5 * _FINE) + 1)
    run = min(runs, key=lambda one: float(np.abs(one).min()))
    return round(float(run.mean()), 4)


def _around_zero(strengths: Array, kept: Array) -> tuple[float, float]:
    """The longest range about 0 in which every measured strength keeps the bounds."""
    below = [s for s, ok in zip(strengths, kept, strict=True) if s <= 0 and not ok]
    above = [s for s, ok in zip(strengths, kept, strict=True) if s >= 0 and not ok]
    low = strengths[strengths > max(below)].min() if below else strengths[0]
    high = strengths[strengths < min(above)].max() if above else strengths[-1]
    return float(min(low, 0.0)), float(max(high, 0.0))


class Neutral:
    """Plain prose of no domain: what is left of the model's abilities when a knob is turned."""

    def __init__(self, model: KnobModel) -> None:
        import torch

        self.model = model
        text = (resources.files("alignvec.data") / "builtin" / "neutral.txt").read_text("utf-8")
        ids = [model.tokenizer(line)["input_ids"][:_LENGTH] for line in text.splitlines()]
        self._ids = [torch.tensor([one], device=model.model.device) for one in ids if len(one) > 1]
        with model.at({}):
            self._base = [self._logprobs(one) for one in self._ids]
        self._base_loss = self._loss(self._base)

    def effect(self, setting: dict[str, float]) -> tuple[float, float]:
        """KL(base || turned) in nats a token, and the perplexity as a multiple of the base's."""
        with self.model.at(setting):
            turned = [self._logprobs(one) for one in self._ids]
        pairs = zip(self._base, turned, strict=True)
        kl = np.concatenate([(b.exp() * (b - t)).sum(-1).cpu().numpy() for b, t in pairs])
        return float(kl.mean()), float(np.exp(self._loss(turned) - self._base_loss))

    def _logprobs(self, ids: torch.Tensor) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            logits: torch.Tensor = self.model.model(ids).logits[0, :-1]
        return logits.float().log_softmax(-1)

    def _loss(self, logprobs: Sequence[torch.Tensor]) -> float:
        losses = [
            -logs.gather(1, ids[0, 1:, None]).mean()
            for logs, ids in zip(logprobs, self._ids, strict=True)
        ]
        return float(sum(losses) / len(losses))
