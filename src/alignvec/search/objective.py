"""The objective of a search: how well a setting meets a target, less a penalty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignvec.search.scorer import Array, Scorer
from alignvec.search.target import Target

PENALTY = 0.02  # of all knobs at their bounds: of equals the smaller turn is taken
_INVERSE_TEMPERATURE = 20.0  # of the softmax in place of the maximum, per nat and token


class Objective:
    """What a search maximises.

    Attributes:
        scorer: of the queries that are searched on.
        bounds: [K, 2], the lowest and highest strength of each knob.
        places: of each of K knobs, the strengths within its bounds where training put its levels;
            none of a knob that was trained elsewhere.
    """

    def __init__(
        self, scorer: Scorer, bounds: Array, places: Sequence[Sequence[float]] = ()
    ) -> None:
        self.scorer, self.bounds = scorer, bounds
        self.places = [
            [at for at in some if low <= at <= high]
            for some, (low, high) in zip(places or [()] * len(bounds), bounds, strict=True)
        ]
        self._domains = np.array(scorer.domains)

    def __call__(
        self,
        strengths: Array,
        scores: Array,
        targets: Sequence[Target],
        penalty: float = PENALTY,
    ) -> Array:
        """[C, T]: the attainment less the penalty.

        Args:
            strengths: [C, K], settings.
            scores: [C, Q, L], theirs.
            penalty: of all knobs at their bounds; it grows with the squares of the strengths.
        """
        effort = np.square(strengths / np.abs(self.bounds).max(1)).mean(1)
        value: Array = self.attainment(scores, targets) - penalty * effort[:, None]
        return value

    def attainment(self, scores: Array, targets: Sequence[Target]) -> Array:
        """How well scores [..., Q, L] meet targets: [..., T], each in (0, 1).

        Of a target, halfway between the least and the mean, over its domains, of the rate of the
        wanted level: the least alone would leave the other domains where they are. Each query
        counts by the softmax of its scores instead of the highest one alone: smooth in the
        strengths, so that a search sees which way is up.
        """
        shifted = _INVERSE_TEMPERATURE * (scores - scores.max(-1, keepdims=True))
        share = np.exp(shifted)
        share /= share.sum(-1, keepdims=True)
        levels = self.scorer.levels
        rates = {
            domain: share[..., self._domains == domain, :].mean(-2)
            for domain in set(self.scorer.domains)
        }

        def attained(target: Target) -> Array:
            wanted = [rates[d][..., levels.index(level)] for d, level in target.items()]
            both: Array = (np.min(wanted, 0) + np.mean(wanted, 0)) / 2
            return both

        return np.stack([attained(target) for target in targets], axis=-1)
