"""The ways to find settings, behind one interface: (scorer, targets, box, ...) -> strengths.

    surface  ours: a few passes, then every target is read off (surface.py)
    grid     the paper's: every combination of evenly spaced strengths
    optuna   a black box that is asked anew for each target (Optuna's default sampler)

All weigh a setting by `Scorer.attainment`, and all pay in passes of the same scorer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from alignvec.search.scorer import Scorer
from alignvec.search.surface import Surface
from alignvec.search.target import Target

if TYPE_CHECKING:
    from alignvec.search.scorer import Array

OnPass = Callable[[int, int], None]
Method = Callable[..., "Array"]


def surface(
    scorer: Scorer,
    targets: Sequence[Target],
    box: Array,
    passes: int | None,
    seed: int,
    on_pass: OnPass,
) -> Array:
    """[T, K], from `passes` passes in all: 8 for each knob that acts on a query."""
    passes = passes or 8 * max(1, int(scorer.applied.sum(1).max()))
    return Surface(scorer, box, passes, seed, on_pass).best(targets, seed)


def grid(
    scorer: Scorer,
    targets: Sequence[Target],
    box: Array,
    passes: int | None,
    seed: int,
    on_pass: OnPass,
) -> Array:
    """[T, K], from the finest grid of at most `passes` points (729: nine a knob for three)."""
    steps = max(2, int((passes or 729) ** (1 / len(box)) + 1e-9))
    points = np.array(list(product(*(np.linspace(low, high, steps) for low, high in box))))
    attained = []
    for done, point in enumerate(points, start=1):
        attained.append(scorer.attainment(scorer(point), targets))
        on_pass(done, len(points))
    best: Array = points[np.argmax(attained, axis=0)]
    return best


def optuna(
    scorer: Scorer,
    targets: Sequence[Target],
    box: Array,
    passes: int | None,
    seed: int,
    on_pass: OnPass,
) -> Array:
    """[T, K], from `passes` passes a target (24)."""
    passes = passes or 24
    import optuna as library

    library.logging.set_verbosity(library.logging.WARNING)
    logging.getLogger("optuna").setLevel(logging.WARNING)
    found = []
    for index, target in enumerate(targets):
        study = library.create_study(
            direction="maximize", sampler=library.samplers.TPESampler(seed=seed)
        )
        study.enqueue_trial(dict(zip(scorer.knobs, np.clip(0.0, *box.T).tolist(), strict=True)))
        for done in range(1, passes + 1):
            trial = study.ask()
            point = np.array(
                [
                    trial.suggest_float(knob, *limits)
                    for knob, limits in zip(scorer.knobs, box.tolist(), strict=True)
                ]
            )
            study.tell(trial, float(scorer.attainment(scorer(point), [target])[0]))
            on_pass(index * passes + done, len(targets) * passes)
        found.append([study.best_params[knob] for knob in scorer.knobs])
    return np.array(found)


METHODS: dict[str, Method] = {"surface": surface, "grid": grid, "optuna": optuna}
