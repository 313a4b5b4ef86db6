"""The methods to find settings, behind one interface.

    surface  ours: a few passes, then every target is read off (surface.py)
    grid     the paper's: every combination of some strengths, evenly spaced unless given
    optuna   a black box that is asked anew for each target (blackbox.py)

All maximise the same `Objective`, and all pay in passes of its scorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Protocol

import numpy as np

from alignvec.errors import AlignvecError, check_known
from alignvec.progress import progress
from alignvec.search.objective import PENALTY, Objective
from alignvec.search.scorer import Array
from alignvec.search.surface import Surface
from alignvec.search.target import Target

METHODS = ("surface", "grid", "optuna")


class Method(Protocol):
    """Finds settings within bounds."""

    def solve(self, targets: Sequence[Target], penalty: float = PENALTY) -> Array:
        """[T, K]: a setting for each target; `penalty` is that of turning the knobs."""


def method(
    name: str,
    objective: Objective,
    passes: int | None,
    seed: int,
    strengths: Sequence[float] = (),
) -> Method:
    """A method by its name, with the passes made that it makes before it knows a target.

    Args:
        strengths: of each knob, those that a grid is of.

    Raises:
        AlignvecError: it is none of `METHODS`.
    """
    check_known("method", name, METHODS)
    if name == "optuna":  # an extra that the others do not need
        from alignvec.search.blackbox import Optuna

        return Optuna(objective, passes, seed)
    if name == "surface":
        return Surface(objective, passes, seed)
    return Grid(objective, passes, strengths)


class Grid:
    """Every point of a grid: of the `strengths` of each knob that are given, else the finest even
    one of at most `passes` points (729: nine a knob for three).
    """

    def __init__(
        self, objective: Objective, passes: int | None = None, strengths: Sequence[float] = ()
    ) -> None:
        self.objective = objective
        bounds = objective.bounds
        steps = int((passes or 729) ** (1 / len(bounds)) + 1e-9)
        if steps < 2 and not strengths:
            raise AlignvecError(
                f"a grid over {len(bounds)} knobs takes at least {2 ** len(bounds)} passes, not "
                f"{passes}"
            )
        axes = [strengths or np.linspace(low, high, steps) for low, high in bounds]
        self.points = np.array(list(product(*axes)))
        scores = []
        with progress("searching", "pass", len(self.points)) as bar:
            for point in self.points:
                scores.append(objective.scorer(point))
                bar.update()
        self.scores = np.array(scores)

    def solve(self, targets: Sequence[Target], penalty: float = PENALTY) -> Array:
        value = self.objective(self.points, self.scores, targets, penalty)
        best: Array = self.points[value.argmax(0)]
        return best
