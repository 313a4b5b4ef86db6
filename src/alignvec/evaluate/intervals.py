"""Intervals: how far a mean over queries may be off."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000


def bootstrap_interval(
    values: NDArray[Any], seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The 95% bootstrap interval of means over queries.

    Args:
        values: [Q, ...], one entry a query.
        seed: of the resampling.

    Returns:
        Its two ends, each [...].
    """
    sample = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[sample].mean(axis=1), (0.025, 0.975), axis=0)
    return low, high
