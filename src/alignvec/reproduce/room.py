"""How much memory and disk a study needs, from the size of the model.

The large pieces alone: weights, their copies, vectors of all weights. Activations, caches and the
vectors of adapters come on top of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alignvec.base.dtypes import default_dtype, parse_dtype
from alignvec.reproduce.cost import Cost
from alignvec.reproduce.study import Study

_FLOAT = 4  # bytes; all weights are trained in float32, and their vectors kept in it
_ADAM = 4  # weights, gradients, two moments
_SAVED = 3  # checkpoints of a training with two moments each: two are kept, a third is written


@dataclass(frozen=True)
class Room:
    """Bytes; NaN of a base of unknown size.

    Attributes:
        training: where the model is trained: weights, gradients, moments. Of several GPUs together.
        running: where it runs: weights, and the copy that knobs are turned from.
        vectors: in memory, beside them, wherever the model runs.
        disk: what lies there at most.
    """

    training: float
    running: float
    vectors: float
    disk: float

    @classmethod
    def of(cls, study: Study, cost: Cost) -> Room:
        size, domains, full = cost.parameters, len(study.domains), study.scale.method == "full"
        whole = _FLOAT * size
        # Together turned: in the search of several domains, or two ends of a soup.
        turned = max(2, domains) if full else 0
        # One a domain and one towards the other end; of those retrained, the last and the next.
        kept = 2 * domains + 2 * bool(domains > 1 and study.scale.retrained) if full else 0
        stage = 1  # the base aligned for safety, always of all weights
        at_work = _SAVED * 3 + 1  # checkpoints of weights and moments, and what comes of them
        return cls(
            training=_ADAM * whole,
            running=2 * _itemsize(study, cost.device) * size,
            vectors=turned * whole,
            disk=(kept + stage + at_work) * whole,
        )


def _itemsize(study: Study, device: str) -> int:
    if (told := parse_dtype(study.dtype)) is not None:
        return told.itemsize
    here = device == "cpu" or torch.cuda.is_available()
    return default_dtype(device).itemsize if here else torch.bfloat16.itemsize
