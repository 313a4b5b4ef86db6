"""How much of everything a study does: what it costs, and how sure its numbers are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """The size of a study.

    Attributes:
        train: records a domain to train on, at most; None: all.
        passes: over them, along the knob.
        epochs: at one end, as in the paper.
        rank: of an adapter.
        queries: test records a domain, at most; None: all.
        answers: of which are answered at each setting.
        tokens: of an answer, at most.
        strengths: of a knob, where it is turned from end to end.
        few: likewise, where a part has many more settings.
        grid: strengths of each knob in the paper's search over added vectors.
        searched: validation queries a domain that a search asks.
        targets: behaviours that are written out and judged; the others have the rate of likelihood.
        retrained: behaviours that a model is retrained for; the time of the others is their mean.
        steering: steps of BiPO.
        method: of the paper's vectors and of retraining, `lora` or `full`.
    """

    train: int | None = None
    passes: float = 3.0
    epochs: float = 1.0
    rank: int = 16
    queries: int | None = None
    answers: int = 20
    tokens: int = 96
    strengths: tuple[float, ...] = (-1.5, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
    few: tuple[float, ...] = (-1.0, 0.0, 0.5, 1.0)
    grid: tuple[float, ...] = (-2.0, -1.0, 0.0, 0.5, 1.0, 2.0)
    searched: int = 8
    targets: int = 27
    retrained: int = 3
    steering: int = 200
    method: str = "lora"


SMALL = Scale(
    train=64, queries=16, answers=8, tokens=64, searched=4, targets=4, retrained=1, steering=40,
    strengths=(-1.0, -0.5, 0.0, 0.5, 1.0, 1.5), few=(0.0, 1.0), grid=(-1.0, 0.5, 1.0),
)  # fmt: skip
PAPER = Scale(rank=64, answers=100, tokens=256, retrained=27, searched=50, method="full",
              strengths=tuple(round(-2 + 0.25 * step, 2) for step in range(17)),
              grid=tuple(round(-2 + 0.5 * step, 1) for step in range(9)))  # fmt: skip
PRESETS = {"small": SMALL, "paper": PAPER}
BASES = {"small": "embedded", "paper": "mistralai/Mistral-7B-Instruct-v0.3"}
