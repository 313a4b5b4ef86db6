"""Our search: a smooth model of the scores, fitted once, from which every target is read off.

The score of a response is a smooth function of the strengths. A few passes, in which every query
visits settings of its own (a scrambled Sobol sequence each; the gate serves them in one batch), are
interpolated by radial basis functions query by query. From then on no setting costs a model
evaluation: all targets are sought on the surfaces, in seconds. Because no two queries share their
points, the errors of the surfaces do not add up in a rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from alignvec.search.scorer import PRICE, Scorer
from alignvec.search.target import Target

if TYPE_CHECKING:
    from alignvec.search.scorer import Array

_CANDIDATES = 2**12
_ZOOMS = 4


class Surface:
    """The scores of every query over a box of strengths.

    Attributes:
        box: [K, 2], the lowest and highest strength of each knob.
    """

    def __init__(
        self,
        scorer: Scorer,
        box: Array,
        passes: int | None = None,
        seed: int = 0,
        on_pass: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Make the passes and fit.

        Args:
            passes: over all queries, the first one at the base; None: 8 for each knob that acts on
                a query.
            on_pass: called with (passes done, passes in all).
        """
        from scipy.stats.qmc import Sobol

        self.scorer, self.box, self.seed = scorer, box, seed
        passes = passes or 8 * max(1, int(scorer.applied.sum(1).max()))
        count = len(box)
        points = np.zeros((passes, *scorer.applied.shape))
        for query in range(len(scorer)):
            sobol = Sobol(count, rng=np.random.default_rng([seed, query]))
            # A power of two is balanced; its first points are spread evenly too.
            unit = sobol.random_base2((passes - 1).bit_length())[: passes - 1]
            points[1:, query] = self._stretched(unit)
        scores = []
        for done, strengths in enumerate(points, start=1):
            scores.append(scorer(strengths))
            on_pass(done, passes)
        self.fit(points, np.array(scores))

    def fit(self, points: Array, scores: Array) -> None:
        """Interpolate. points: [P, Q, K]; scores: [P, Q, L]."""
        from scipy.interpolate import RBFInterpolator

        self._still = scores.mean(0)  # of a query that no knob acts on
        self._of_query = [
            RBFInterpolator(points[:, query, applied], scores[:, query], kernel="cubic")
            if applied.any()
            else None
            for query, applied in enumerate(self.scorer.applied)
        ]

    def scores(self, strengths: Array) -> Array:
        """[C, Q, L]: s(l) of every query at C settings, [C, K]."""
        found = np.tile(self._still, (len(strengths), 1, 1))
        for query, (surface, applied) in enumerate(
            zip(self._of_query, self.scorer.applied, strict=True)
        ):
            if surface is not None:
                found[:, query] = surface(strengths[:, applied])
        return found

    def best(self, targets: Sequence[Target], price: float = PRICE) -> Array:
        """[T, K]: the setting that meets each target best on the surfaces."""
        from scipy.stats.qmc import Sobol

        unit = Sobol(len(self.box), rng=self.seed).random(_CANDIDATES)
        candidates = self._stretched(unit)
        centres = candidates[self._worth(candidates, targets, price).argmax(0)]
        for index, target in enumerate(targets):
            reach = (self.box[:, 1] - self.box[:, 0]) / 4
            for _ in range(_ZOOMS):
                near = centres[index] + reach * (2 * unit[: _CANDIDATES // 16] - 1)
                near = np.vstack([centres[index], np.clip(near, *self.box.T)])
                centres[index] = near[self._worth(near, [target], price)[:, 0].argmax()]
                reach /= 3
        found: Array = centres
        return found

    def _worth(self, strengths: Array, targets: Sequence[Target], price: float) -> Array:
        return self.scorer.worth(strengths, self.scores(strengths), targets, self.box, price)

    def _stretched(self, unit: Array) -> Array:
        low, high = self.box.T
        stretched: Array = low + (high - low) * unit
        return stretched
