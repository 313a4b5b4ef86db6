"""Which knobs act on a query: those of its domain, where a router tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignvec.base.identity import BaseId
from alignvec.vector.alignment_vector import AlignmentVector


class Router(Protocol):
    """What tells the domain of a query; `alignvec.route` has one."""

    @property
    def reads(self) -> str:
        """`hidden` states of the base, or the `text` alone."""

    def check_base(self, base: BaseId) -> None:
        """Refuse a base other than its own."""

    def domain(
        self,
        model: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        queries: Sequence[str],
    ) -> list[str | None]:
        """The domain of each query, read by the base; None where it has none."""


def acting_on(
    domains: Sequence[str | None], vectors: Mapping[str, AlignmentVector]
) -> NDArray[np.bool_]:
    """[N, K]: which knobs act on queries of these domains."""
    of_knob = [domain_of(knob, vector) for knob, vector in vectors.items()]
    return np.array([[domain == own for own in of_knob] for domain in domains])


def routed(
    settings: Sequence[Mapping[str, float]], acting: NDArray[np.bool_]
) -> list[dict[str, float]]:
    """The setting of each query with the knobs at 0 that do not act on it."""
    return [
        {knob: at * bool(on) for (knob, at), on in zip(setting.items(), row, strict=True)}
        for setting, row in zip(settings, acting, strict=True)
    ]


def domain_of(knob: str, vector: AlignmentVector) -> str:
    """The domain that a vector was trained on; the knob's name if it does not say."""
    domain = vector.training.get("domain")
    return domain if isinstance(domain, str) and domain else knob
