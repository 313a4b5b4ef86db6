"""What a search asks the model: the scores s(l) of a set of queries, each under a setting.

A pass scores every query once. Through the gate each query may have a setting of its own in the
same batch, so one pass can visit as many settings as there are queries.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignvec.data.records import Record
from alignvec.evaluate.measurable import Measurable
from alignvec.evaluate.rates import response_rows

Array = NDArray[np.float64]


class Scorer:
    """Scores of queries under settings; what it cost is counted.

    Attributes:
        knobs: K names, the columns of strengths.
        domains: the domain of each of Q queries.
        levels: L names, from low to high.
        acting: [Q, K] bool, which knobs act on which query: all, unless queries are routed.
        seconds: that it took.
    """

    def __init__(
        self,
        model: Measurable,
        records: Sequence[Record],
        levels: Sequence[str],
        acting: NDArray[np.bool_] | None = None,
    ) -> None:
        self.model = model
        self.knobs = list(model.vectors)
        self.levels = list(levels)
        self.domains = [record.domain for record in records]
        self.acting = np.ones((len(records), len(self.knobs)), bool)
        if acting is not None:
            self.acting = acting
        self.seconds, self._scored = 0.0, 0
        self._cache: dict[tuple[float, ...], list[float]] = {}  # query and strengths -> scores
        self._rows = response_rows(model.tokenizer, records, levels)

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, strengths: Array) -> Array:
        """s(l) of every query, [Q, L] in nats per token.

        Args:
            strengths: [K], one setting for all queries, or [Q, K], one for each.
        """
        start = time.perf_counter()
        each = np.broadcast_to(strengths, self.acting.shape) * self.acting + 0.0
        keys = [(query, *setting) for query, setting in enumerate(each.tolist())]
        new = [query for query, key in enumerate(keys) if key not in self._cache]
        settings = [dict(zip(self.knobs, row, strict=True)) for row in each[new].tolist()]
        scores = self.model.scores([self._rows[query] for query in new], settings)
        self._cache.update(zip((keys[query] for query in new), scores, strict=True))
        self._scored += len(new)
        self.seconds += time.perf_counter() - start
        return np.array([self._cache[key] for key in keys])

    @property
    def passes(self) -> int:
        """Over all queries, so far: the number of model evaluations. Nothing is scored twice."""
        return math.ceil(self._scored / len(self))
