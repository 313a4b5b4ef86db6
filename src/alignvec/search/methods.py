"""The ways to find settings, behind one interface: made of (scorer, box, passes, seed, on_pass),
each answers `best(targets, price)` with strengths.

    surface  ours: a few passes, then every target is read off (surface.py)
    grid     the paper's: every combination of evenly spaced strengths
    optuna   a black box that is asked anew for each target (Optuna's default sampler)

All weigh a setting by `Scorer.worth`, and all pay in passes of the same scorer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Protocol

import numpy as np

from alignvec.search.scorer import PRICE, Scorer
from alignvec.search.surface import Surface
from alignvec.search.target import Target

if TYPE_CHECKING:
    from alignvec.search.scorer import Array


class Method(Protocol):
    """Finds settings in a box of strengths."""

    def best(self, targets: Sequence[Target], price: float = PRICE) -> Array:
        """[T, K]: a setting for each target; `price` is what turning the knobs costs."""


class Grid:
    """Every point of the finest grid of at most `passes` points (729: nine a knob for three)."""

    def __init__(
        self,
        scorer: Scorer,
        box: Array,
        passes: int | None,
        seed: int,
        on_pass: Callable[[int, int], None],
    ) -> None:
        self.scorer, self.box = scorer, box
        steps = max(2, int((passes or 729) ** (1 / len(box)) + 1e-9))
        self.points = np.array(list(product(*(np.linspace(low, high, steps) for low, high in box))))
        scores = []
        for done, point in enumerate(self.points, start=1):
            scores.append(scorer(point))
            on_pass(done, len(self.points))
        self.scores = np.array(scores)

    def best(self, targets: Sequence[Target], price: float = PRICE) -> Array:
        worth = self.scorer.worth(self.points, self.scores, targets, self.box, price)
        best: Array = self.points[worth.argmax(0)]
        return best


class Optuna:
    """`passes` passes (24) for each target."""

    def __init__(
        self,
        scorer: Scorer,
        box: Array,
        passes: int | None,
        seed: int,
        on_pass: Callable[[int, int], None],
    ) -> None:
        self.scorer, self.box, self.passes, self.seed = scorer, box, passes or 24, seed
        self.on_pass = on_pass

    def best(self, targets: Sequence[Target], price: float = PRICE) -> Array:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("optuna").setLevel(logging.WARNING)
        sampler, knobs = optuna.samplers.TPESampler, self.scorer.knobs
        found = []
        for index, target in enumerate(targets):
            study = optuna.create_study(direction="maximize", sampler=sampler(seed=self.seed))
            base = np.clip(0.0, *self.box.T).tolist()
            study.enqueue_trial(dict(zip(knobs, base, strict=True)))
            for done in range(1, self.passes + 1):
                trial = study.ask()
                limits = zip(knobs, self.box.tolist(), strict=True)
                point = np.array([[trial.suggest_float(knob, *ends) for knob, ends in limits]])
                scores = self.scorer(point[0])[None]
                worth = self.scorer.worth(point, scores, [target], self.box, price)
                study.tell(trial, float(worth[0, 0]))
                self.on_pass(index * self.passes + done, len(targets) * self.passes)
            found.append([study.best_params[knob] for knob in knobs])
        return np.array(found)


METHODS: dict[str, Callable[..., Method]] = {"surface": Surface, "grid": Grid, "optuna": Optuna}
