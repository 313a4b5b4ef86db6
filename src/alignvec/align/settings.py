"""How to train: every choice, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alignvec.base.dtypes import parse_dtype
from alignvec.errors import AlignvecError, check_known

LOSSES = {  # our word: TRL's
    "dpo": "sigmoid",
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
METHODS = ("lora", "full")


@dataclass(frozen=True)
class AlignSettings:
    """How to train.

    Attributes:
        loss: a key of `LOSSES`.
        method: `lora` (an adapter on every linear layer) or `full` (all weights).
        learning_rate: at the first step, falling to zero on a cosine. No warm-up: an
            adapter starts at zero, and of two dozen steps none is to spare.
            None: see `peak_learning_rate`.
        beta: strength of the pull towards the base (DPO's beta).
        batch_size: pairs a step.
        rank: of the adapter; its alpha is twice that.
        layers: the share of the blocks that the adapter changes, counted from the top.
        two_sided: every second step turns the adapter to strength -1 and the pairs around, so that
            the knob is trained on both its ends: theta + tau prefers the chosen responses and
            theta - tau the rejected ones. Only for lora. False is plain DPO, as in the paper.
        dtype: of the base's weights. None takes what the device computes fastest in for lora, and
            float32 for full, whose small steps bfloat16 weights would swallow.
        save_every: steps between checkpoints.
    """

    loss: str = "dpo"
    method: str = "lora"
    epochs: float = 1.0
    learning_rate: float | None = None
    beta: float = 0.1
    batch_size: int = 8
    rank: int = 16
    layers: float = 0.75
    two_sided: bool = True
    max_length: int = 1024
    seed: int = 0
    dtype: str | None = None
    save_every: int = 10

    def __post_init__(self) -> None:
        check_known("loss", self.loss, LOSSES)
        check_known("method", self.method, METHODS)
        for name in ("epochs", "beta", "batch_size", "rank", "max_length", "save_every", "layers"):
            if not 0 < getattr(self, name) < float("inf"):
                raise AlignvecError(f"{name} must be a positive number, not {getattr(self, name)}")
        if self.layers > 1:
            raise AlignvecError(f"layers is a share of the blocks, at most 1, not {self.layers}")
        rate = self.learning_rate
        if rate is not None and not 0 < rate < float("inf"):
            raise AlignvecError(f"learning rate must be a positive number, not {rate}")
        parse_dtype(self.dtype)

    def peak_learning_rate(self, pairs: int) -> float:
        """The rate asked for, or one that moves the weights about equally far for any data size.

        Adam's steps have the size of the learning rate, so its sum over the steps bounds how far
        the weights travel. Held constant (at most 1e-3 a step), lambda = 1 means about as much on
        50 queries as on 500, and `docs/explanation.md` shows where between -3 and 3 things happen.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        if self.method == "full":
            return 5e-6
        steps = math.ceil(pairs / self.batch_size) * self.epochs
        return min(1e-3, 0.016 / steps)
