"""Intervals: how far a share of queries may be off."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # of a normal distribution, 95% lie within


def wilson_interval(share: float, queries: int) -> tuple[float, float]:
    """The 95% interval of a share of queries (Wilson 1927).

    It has a width at 0 and 1, too, where a resampling of the queries has none: six of six is not
    certainty.

    Args:
        share: in [0, 1]; a query may count in part.
        queries: how many, at least 1.
    """
    spread = _Z**2 / queries
    centre = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    low, high = max(0.0, centre - reach), min(1.0, centre + reach)
    # Rounding may leave a hair between an end and the share that it is.
    return (0.0 if share <= 0 else low), (1.0 if share >= 1 else high)
