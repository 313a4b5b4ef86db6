"""Optuna as a method: a black-box optimiser that is asked anew for each target."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import optuna

from alignvec.progress import progress
from alignvec.search.objective import PENALTY, Objective
from alignvec.search.scorer import Array
from alignvec.search.target import Target


class Optuna:
    """Optuna's default sampler, `passes` passes (24) for each target."""

    def __init__(self, objective: Objective, passes: int | None = None, seed: int = 0) -> None:
        self.objective, self.passes, self.seed = objective, passes or 24, seed

    def solve(self, targets: Sequence[Target], penalty: float = PENALTY) -> Array:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("optuna").setLevel(logging.WARNING)
        with progress("searching", "pass", len(targets) * self.passes) as bar:
            found = []
            for target in targets:
                sampler = optuna.samplers.TPESampler(seed=self.seed)
                study = optuna.create_study(direction="maximize", sampler=sampler)
                study.enqueue_trial(self._base())
                for _ in range(self.passes):
                    trial = study.ask()
                    study.tell(trial, self._value(trial, target, penalty))
                    bar.update()
                found.append([study.best_params[knob] for knob in self.objective.scorer.knobs])
        return np.array(found)

    def _base(self) -> dict[str, float]:
        """The first trial: the base, or what is nearest to it within the bounds."""
        nearest = np.clip(0.0, *self.objective.bounds.T).tolist()
        return dict(zip(self.objective.scorer.knobs, nearest, strict=True))

    def _value(self, trial: optuna.Trial, target: Target, penalty: float) -> float:
        scorer, bounds = self.objective.scorer, self.objective.bounds.tolist()
        limits = zip(scorer.knobs, bounds, strict=True)
        point = np.array([[trial.suggest_float(knob, *ends) for knob, ends in limits]])
        return float(self.objective(point, scorer(point[0])[None], [target], penalty)[0, 0])
