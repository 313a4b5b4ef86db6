"""Our search: a smooth model of the scores, fitted once, from which every target is read off.

The score of a response is a smooth function of the strengths. A few passes, in which every query
visits settings of its own (a scrambled Sobol sequence each; the gate serves them in one batch), are
interpolated by radial basis functions query by query. From then on no setting costs a model
evaluation: all targets are sought on the surfaces, in seconds. A third of the passes go where
training put the levels, if it did, and the search begins there. Because no two queries share their
points, the errors of the surfaces do not add up in a rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.stats.qmc import Sobol

from alignvec.errors import AlignvecError
from alignvec.progress import progress
from alignvec.search.objective import PENALTY, Objective
from alignvec.search.scorer import Array
from alignvec.search.target import Target

_CANDIDATES = 2**12
_ZOOMS = 4


class Surface:
    """The scores of every query, interpolated between the settings that it visited."""

    def __init__(self, objective: Objective, passes: int | None = None, seed: int = 0) -> None:
        """Make the passes and fit.

        Args:
            passes: over all queries, the first one at the base; None: 8 for each knob that acts on
                a query.

        Raises:
            AlignvecError: they are too few for a surface over so many knobs.
        """
        self.objective, self.scorer, self.seed = objective, objective.scorer, seed
        self.bounds = objective.bounds
        acting = self.scorer.acting
        turned = int(acting.sum(1).max())
        passes = passes or 8 * max(1, turned)
        if passes <= turned:
            raise AlignvecError(
                f"a surface over {turned} knobs takes at least {turned + 1} passes, not {passes}"
            )
        points = np.zeros((passes, *acting.shape))
        for query in range(len(self.scorer)):
            sobol = Sobol(len(self.bounds), rng=np.random.default_rng([seed, query]))
            # A power of two is balanced; its first points are spread evenly too.
            unit = sobol.random_base2((passes - 1).bit_length())[: passes - 1]
            points[1:, query] = self._within_bounds(unit)
            self._visit_places(points[1 : 1 + passes // 3, query], query)
        scores = []
        with progress("searching", "pass", passes) as bar:
            for strengths in points:
                scores.append(self.scorer(strengths))
                bar.update()
        self.fit(points, np.array(scores))

    def fit(self, points: Array, scores: Array) -> None:
        """Interpolate. points: [P, Q, K]; scores: [P, Q, L]."""
        self._still = scores.mean(0)  # of a query that no knob acts on
        self._of_query = [
            RBFInterpolator(points[:, query, acting], scores[:, query], kernel="cubic")
            if acting.any()
            else None
            for query, acting in enumerate(self.scorer.acting)
        ]

    def scores(self, strengths: Array) -> Array:
        """[C, Q, L]: s(l) of every query at C settings, [C, K]."""
        found = np.tile(self._still, (len(strengths), 1, 1))
        for query, (surface, acting) in enumerate(
            zip(self._of_query, self.scorer.acting, strict=True)
        ):
            if surface is not None:
                found[:, query] = surface(strengths[:, acting])
        return found

    def solve(self, targets: Sequence[Target], penalty: float = PENALTY) -> Array:
        """[T, K]: the setting that meets each target best on the surfaces."""
        unit = Sobol(len(self.bounds), rng=self.seed).random(_CANDIDATES)
        # Where training put the levels of all knobs, every combination is one to begin with.
        known = [
            some or [float(np.clip(0.0, *bounds))]
            for some, bounds in zip(self.objective.places, self.bounds, strict=True)
        ]
        candidates = np.vstack([self._within_bounds(unit), np.array(list(product(*known)))])
        centres = candidates[self._value(candidates, targets, penalty).argmax(0)]
        for index, target in enumerate(targets):
            reach = (self.bounds[:, 1] - self.bounds[:, 0]) / 4
            for _ in range(_ZOOMS):
                near = centres[index] + reach * (2 * unit[: _CANDIDATES // 16] - 1)
                near = np.vstack([centres[index], np.clip(near, *self.bounds.T)])
                centres[index] = near[self._value(near, [target], penalty)[:, 0].argmax()]
                reach /= 3
        found: Array = centres
        return found

    def _visit_places(self, points: Array, query: int) -> None:
        """Put settings [P, K] of a query where training put levels, of the knobs that have any.

        Each combination once: no surface goes twice through one point.
        """
        acting = self.scorer.acting[query]
        known = [k for k, places in enumerate(self.objective.places) if places and acting[k]]
        every = np.array(list(product(*(self.objective.places[k] for k in known))))
        every = every[every.any(1)]  # the base was the first point
        np.random.default_rng([self.seed, query, 1]).shuffle(every)
        some = every[: len(points)]
        points[: len(some), known] = some

    def _value(self, strengths: Array, targets: Sequence[Target], penalty: float) -> Array:
        return self.objective(strengths, self.scores(strengths), targets, penalty)

    def _within_bounds(self, unit: Array) -> Array:
        low, high = self.bounds.T
        strengths: Array = low + (high - low) * unit
        return strengths
