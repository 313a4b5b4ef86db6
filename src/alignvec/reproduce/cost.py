"""How long a study takes: before it starts from the size of the model, then from what is done."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from alignvec.base.checkpoint import CheckpointWeights
from alignvec.base.source import find_base
from alignvec.errors import AlignvecError
from alignvec.files import read_object
from alignvec.reproduce.item import Item, Work, works
from alignvec.reproduce.study import Study

_ROW = 300  # tokens of a query with the responses of three levels
_FORWARD, _TRAINING = 2, 6  # operations a parameter and token
# Writing is bound by memory, not by operations: a token costs as if it were so many.
_WRITING = {"cpu": 6, "cuda": 30}
# Operations a second: two CPU cores with bfloat16 (training the embedded model, measured), and 30%
# of an H100's peak. Only a start: what is done corrects it.
_SPEED = {"cpu": 1.1e11, "cuda": 3e14}
_BILLIONS = re.compile(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Cost:
    """Seconds of work on a device.

    Attributes:
        parameters: of the base.
        device: `cpu` or `cuda`; any other is reckoned as the latter.
        tokens: of an answer.
        correction: what was measured, over what was expected.
    """

    parameters: float
    device: str
    tokens: int
    correction: float = 1.0

    @classmethod
    def of(cls, study: Study, done: Iterable[Item] = ()) -> Cost:
        """The cost of a study's work, corrected by the items that are done."""
        device = study.device or ("cuda" if torch.cuda.is_available() else "cpu")
        plain = cls(parameters_of(study.base), device.partition(":")[0], study.scale.tokens)
        items = list(done)
        expected = sum(map(plain.seconds, works(items)))
        took = sum(_took(study.file(item.name)) for item in items)
        ratio = took / expected if expected > 0 else 1.0
        return cls(plain.parameters, plain.device, plain.tokens, ratio)

    def seconds(self, work: Work) -> float:
        """How long some work may take; NaN if the base's size is not known."""
        kind = "cpu" if self.device == "cpu" else "cuda"
        written = work.written * self.tokens * _FORWARD * _WRITING[kind]
        read = _ROW * (_TRAINING * work.trained + _FORWARD * work.scored)
        return self.correction * self.parameters * (read + written) / _SPEED[kind]


def parameters_of(base: str) -> float:
    """How many parameters a base has: counted in its files if it is here, else read from its name,
    as in `Mistral-7B`; NaN if neither says it.
    """
    if Path(base).exists() or base == "embedded":
        try:
            weights = CheckpointWeights(find_base(base))
        except AlignvecError:
            return math.nan
        return float(sum(math.prod(weights.shape(name)) for name in weights))
    found = _BILLIONS.search(base)
    return float(found[1]) * (1e9 if found[2].lower() == "b" else 1e6) if found else math.nan


def _took(file: Path) -> float:
    return float(read_object(file)["seconds"])
