"""What a search asks the model: the scores s(l) of a set of queries, each under a setting.

A pass scores every query once. Through the gate each query may have a setting of its own in the
same batch, so one pass can visit as many settings as there are queries.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from alignvec.data import Record
from alignvec.evaluate import response_rows
from alignvec.knobs import KnobModel
from alignvec.likelihood import response_scores
from alignvec.search.target import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alignvec.knobs.setting import Setting

    Array = NDArray[np.float64]

PRICE = 0.02  # what turning all knobs to their limits costs: of equals the smaller turn is taken
_SHARPNESS = 20.0  # of the softmax in place of the maximum, per nat and token


class Scorer:
    """Scores of queries under settings; what it cost is counted.

    Attributes:
        knobs: K names, the columns of strengths.
        domains: the domain of each of Q queries.
        levels: L names, from low to high.
        applied: [Q, K] bool, which knobs act on which query: all, unless queries are routed.
        seconds: that it took.
    """

    def __init__(
        self,
        model: KnobModel,
        records: Sequence[Record],
        levels: Sequence[str],
        applied: NDArray[np.bool_] | None = None,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Args: on_progress: called with the number of queries just scored."""
        self.model = model
        self.knobs = list(model.vectors)
        self.levels = list(levels)
        self.domains = [record.domain for record in records]
        self.applied = np.ones((len(records), len(self.knobs)), bool)
        if applied is not None:
            self.applied = applied
        self.seconds, self._scored = 0.0, 0
        self._known: dict[tuple[float, ...], list[float]] = {}  # query and strengths -> scores
        self._rows = response_rows(model.tokenizer, records, levels)
        self._on_progress = on_progress

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, strengths: Array) -> Array:
        """s(l) of every query, [Q, L] in nats per token.

        Args:
            strengths: [K], one setting for all queries, or [Q, K], one for each.
        """
        import torch

        start = time.perf_counter()
        each = np.broadcast_to(strengths, self.applied.shape) * self.applied + 0.0
        keys = [(query, *setting) for query, setting in enumerate(each.tolist())]
        new = [query for query, key in enumerate(keys) if key not in self._known]
        shared: Setting = {}
        rows = torch.tensor(each[new], dtype=torch.float32)
        alike = bool((each == each[0]).all())
        if alike:  # costs less in the weights than beside them
            shared = dict(zip(self.knobs, map(float, each[0]), strict=True))

        def within(batch: list[int]) -> AbstractContextManager[None]:
            return nullcontext() if alike else self.model.gate.rows(rows[batch])

        with self.model.at(shared):
            scores = response_scores(
                self.model.model, [self._rows[query] for query in new],
                on_progress=self._on_progress, within=within,
            )  # fmt: skip
        self._known.update(zip((keys[query] for query in new), scores, strict=True))
        self._scored += len(new)
        self.seconds += time.perf_counter() - start
        return np.array([self._known[key] for key in keys])

    @property
    def passes(self) -> int:
        """Over all queries, so far: the number of model evaluations. Nothing is scored twice."""
        return math.ceil(self._scored / len(self))

    def attainment(self, scores: Array, targets: Sequence[Target]) -> Array:
        """How well scores [..., Q, L] meet targets: [..., T], each in (0, 1).

        Of a target, halfway between the least and the mean, over its domains, of the rate of the
        wanted level: the least alone would leave the other domains where they are. Each query
        counts by the softmax of its scores instead of the highest one alone: smooth in the
        strengths, so that a search sees which way is up.
        """
        shifted = _SHARPNESS * (scores - scores.max(-1, keepdims=True))
        share = np.exp(shifted)
        share /= share.sum(-1, keepdims=True)
        domains = np.array(self.domains)
        rates = {domain: share[..., domains == domain, :].mean(-2) for domain in set(self.domains)}

        def attained(target: Target) -> Array:
            wanted = [rates[d][..., self.levels.index(level)] for d, level in target.items()]
            both: Array = (np.min(wanted, 0) + np.mean(wanted, 0)) / 2
            return both

        return np.stack([attained(target) for target in targets], axis=-1)

    def worth(
        self, strengths: Array, scores: Array, targets: Sequence[Target], box: Array, price: float
    ) -> Array:
        """[C, T]: the attainment less the effort of turning the knobs.

        Args:
            strengths: [C, K], settings.
            scores: [C, Q, L], theirs.
            box: [K, 2], the lowest and highest strength of each knob.
            price: of all knobs at their limits; the effort grows with the squares of the strengths.
        """
        effort = np.square(strengths / np.abs(box).max(1)).mean(1)
        worth: Array = self.attainment(scores, targets) - price * effort[:, None]
        return worth
