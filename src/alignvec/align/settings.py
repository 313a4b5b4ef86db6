"""How to train: every choice, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from alignvec.align.objectives import OBJECTIVES
from alignvec.base.dtypes import parse_dtype
from alignvec.errors import AlignvecError, check_known

TRL_LOSSES = {  # our word: TRL's
    "dpo": "sigmoid",
    "dpo_norm": "sigmoid_norm",
    "ipo": "ipo",
    "hinge": "hinge",
    "nca": "nca_pair",
    "bco": "bco_pair",
    "sppo": "sppo_hard",
    "aot": "aot",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "discopop",
}
LOSSES = (*OBJECTIVES, *TRL_LOSSES)
METHODS = ("lora", "full")
GAIN = 4.716  # of the embedded model's linear layers
_LENGTH_NORMALISED = (*OBJECTIVES, "dpo_norm")  # their beta is per token, not per response


@dataclass(frozen=True)
class AlignSettings:
    """How to train.

    Attributes:
        loss: one of `LOSSES`. None: simpo along the knob, dpo at one end.
        method: `lora` (an adapter on every linear layer) or `full` (all weights, one end only).
        learning_rate: at its height, falling to zero on a cosine. None: see `peak_learning_rate`.
        beta: DPO's pull towards the base, or the steepness of an objective in mean
            log-likelihoods. None: what suits the loss.
        margin: of simpo, in units of beta nats a token.
        likelihood: weight of the preferred response's negative log-likelihood, which keeps the text
            a text (as in RPO, or ORPO). None: 0 at one end, which is plain DPO.
        hold: weight of what held responses move, in squared nats a token.
        batch_size: pairs a step.
        rank: of the adapter, for each knob; its alpha is twice that.
        layers: the share of the blocks that the adapter changes, counted from the top.
        dtype: of the base's weights. None takes what the device computes fastest in for lora, and
            float32 for full, whose small steps bfloat16 weights would swallow.
        save_every: steps between checkpoints.
    """

    loss: str | None = None
    method: str = "lora"
    epochs: float = 1.0
    learning_rate: float | None = None
    beta: float | None = None
    margin: float = 2.5
    likelihood: float | None = None
    hold: float = 10.0
    batch_size: int = 8
    rank: int = 16
    layers: float = 0.75
    max_length: int = 1024
    seed: int = 0
    dtype: str | None = None
    save_every: int = 10

    def __post_init__(self) -> None:
        check_known("loss", self.loss or LOSSES[0], LOSSES)
        check_known("method", self.method, METHODS)
        for name in ("epochs", "beta", "batch_size", "rank", "max_length", "save_every", "layers"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise AlignvecError(f"{name} must be a positive number, not {value}")
        for name in ("margin", "likelihood", "hold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise AlignvecError(f"{name} must be a number of at least 0, not {value}")
        if self.layers > 1:
            raise AlignvecError(f"layers is a share of the blocks, at most 1, not {self.layers}")
        rate = self.learning_rate
        if rate is not None and not 0 < rate < float("inf"):
            raise AlignvecError(f"learning rate must be a positive number, not {rate}")
        parse_dtype(self.dtype)

    def resolved(self, along: bool, pairs: int, gain: float = GAIN) -> AlignSettings:
        """With a value for everything that was left open.

        Args:
            along: whether the pairs lie along a knob, or at its one end.
            pairs: how many there are; along a knob over all passes.
            gain: of the model's linear layers, see `peak_learning_rate`.
        """
        loss = self.loss or ("simpo" if along else "dpo")
        return replace(
            self,
            loss=loss,
            learning_rate=self.peak_learning_rate(along, pairs, gain),
            beta=self.beta or (10.0 if loss in _LENGTH_NORMALISED else 0.1),
            likelihood=(0.5 if along else 0.0) if self.likelihood is None else self.likelihood,
        )

    def peak_learning_rate(self, along: bool, pairs: int, gain: float = GAIN) -> float:
        """The rate asked for, or one that suits the model and the way of training.

        A step of Adam moves every factor by the learning rate, whatever the model: what that does
        to the output of a layer depends on how much the layer itself makes of its input, its gain.
        Rates are those that were found on the embedded model, times the gain relative to its own;
        another model then moves by the same share a step.

        At one end nothing bounds a margin but the way that the weights travel. The sum of the rate
        over the steps bounds that: held constant (at most 1e-3 a step), lambda = 1 means about as
        much on 50 queries as on 500. Along a knob the objective saturates by itself.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        if self.method == "full":
            return 5e-6
        steps = math.ceil(pairs / self.batch_size) * self.epochs
        return (1e-3 if along else min(1e-3, 0.016 / steps)) * gain / GAIN
