"""How to train: every choice, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from alignvec.align.objectives import OBJECTIVES
from alignvec.base.dtypes import parse_dtype
from alignvec.base.positions import positions
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
RANK = 16
_FEW = 4  # directions that a domain has for itself: see `alignvec.align.aim`
_FULL = 5e-6  # the learning rate of full weights
_KEPT = 1e-3  # bfloat16 keeps 8 bits: smaller steps are lost on weights of usual size
_LENGTH_NORMALISED = (*OBJECTIVES, "dpo_norm")  # their beta is per token, not per response


@dataclass(frozen=True)
class AlignSettings:
    """How to train.

    Attributes:
        loss: one of `LOSSES`. None: simpo along the knob, dpo at one end.
        method: `lora` (an adapter on every linear layer) or `full` (all weights, one end only).
        learning_rate: at its height, falling to zero on a cosine. None: see `peak_learning_rate`.
        ratio: of the rate of an adapter's B to that of its A (LoRA+, arXiv 2402.12354). None: 4
            along the knob, 1 at one end.
        beta: DPO's pull towards the base, or the steepness of an objective in mean
            log-likelihoods. None: what suits the loss.
        margin: of simpo, in units of beta nats a token.
        likelihood: weight of the preferred response's negative log-likelihood, which keeps the text
            a text (as in RPO, or ORPO). None: 0 at one end, which is plain DPO.
        hold: weight of what held responses move, in squared nats a token.
        own_answers: along the knob, the share of the steps after which the model's own answers are
            what is not preferred; 1: never.
        batch_size: pairs a step. None: 8 at one end, those of two rows along the knob, where many
            small steps reach more than few large ones.
        rank: of the adapter, for each knob; its alpha is twice that. None: 16, in a bank 4.
        max_length: tokens of a prompt with its response; what is longer is cut.
        layers: the share of the blocks that the adapter changes, counted from the top.
        dtype: of the base's weights. None takes what the device computes fastest in for lora, and
            float32 for full, whose small steps bfloat16 weights would swallow.
        save_every: steps between checkpoints.
    """

    loss: str | None = None
    method: str = "lora"
    epochs: float = 1.0
    learning_rate: float | None = None
    ratio: float | None = None
    beta: float | None = None
    margin: float = 2.0
    likelihood: float | None = None
    hold: float = 10.0
    own_answers: float = 0.33
    batch_size: int | None = None
    rank: int | None = None
    layers: float = 0.75
    max_length: int = 1024
    seed: int = 0
    dtype: str | None = None
    save_every: int = 10

    def __post_init__(self) -> None:
        check_known("loss", self.loss or LOSSES[0], LOSSES)
        check_known("method", self.method, METHODS)
        for name in (
            "epochs", "ratio", "beta", "batch_size", "rank", "max_length", "save_every", "layers",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise AlignvecError(f"{name} must be a positive number, not {value}")
        for name in ("margin", "likelihood", "hold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise AlignvecError(f"{name} must be a number of at least 0, not {value}")
        if not 0 <= self.own_answers <= 1:
            raise AlignvecError(
                f"own_answers is a share of the steps, from 0 to 1, not {self.own_answers}"
            )
        if self.layers > 1:
            raise AlignvecError(f"layers is a share of the blocks, at most 1, not {self.layers}")
        rate = self.learning_rate
        if rate is not None and not 0 < rate < float("inf"):
            raise AlignvecError(f"learning rate must be a positive number, not {rate}")
        parse_dtype(self.dtype)
        if self.method == "full" and self.dtype == "float16":
            raise AlignvecError(
                "dtype float16 cannot be trained with method full: its smallest steps are 0, its "
                "largest gradients infinite; take float32, or method lora"
            )
        if self.method == "full" and self.dtype == "bfloat16" and (rate or _FULL) < _KEPT:
            raise AlignvecError(
                f"dtype bfloat16 rounds most steps of method full away at learning rate "
                f"{rate or _FULL:g}; take float32, or method lora"
            )

    def resolved(
        self, along: bool, pairs: int, gain: float = GAIN, row: int = 1, knobs: int = 1
    ) -> AlignSettings:
        """With a value for everything that was left open.

        Args:
            along: whether the pairs lie along a knob, or at its one end.
            pairs: how many there are; along a knob over all passes.
            gain: of the model's linear layers, see `peak_learning_rate`.
            row: how many pairs share a row along a knob.
            knobs: that are trained side by side.
        """
        sized = replace(self, batch_size=self.batch_size or (2 * row if along else 8))
        loss = self.loss or ("simpo" if along else "dpo")
        return replace(
            self,
            loss=loss,
            batch_size=sized.batch_size,
            learning_rate=sized.peak_learning_rate(along, pairs, gain),
            rank=self.rank or (_FEW if knobs > 1 else RANK),
            ratio=self.ratio or (4.0 if along else 1.0),
            beta=self.beta or (10.0 if loss in _LENGTH_NORMALISED else 0.1),
            likelihood=(1.5 if along else 0.0) if self.likelihood is None else self.likelihood,
        )

    def within(self, config: Any) -> AlignSettings:
        """With no length beyond the positions that a model has."""
        return replace(self, max_length=min(self.max_length, positions(config) or self.max_length))

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
            return _FULL
        steps = math.ceil(pairs / (self.batch_size or 8)) * self.epochs
        return (1e-3 if along else min(1e-3, 0.016 / steps)) * gain / GAIN
