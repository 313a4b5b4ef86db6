"""Routing: from a query to its domain, so that a knob acts on its own domain's queries alone.

A linear classifier, on one of two things. `hidden`: the base model's own hidden states (the mean
over the query's tokens, at half the depth), one short forward pass a query and no second model.
`text`: the words alone, so that a server in front of any engine can route. A knob over-generalises
as ever; a query of another domain just never meets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignvec.base.checkpoint import CheckpointWeights
from alignvec.base.identity import BaseId, base_id
from alignvec.base.weights import all_finite
from alignvec.errors import AlignvecError, check_known
from alignvec.files import atomic_folder, read_object, validated, write_json
from alignvec.route.hidden import hidden_means
from alignvec.route.text import WIDTH, text_features

READERS = ("hidden", "text")
CONFIG, WEIGHTS = "router.json", "router.safetensors"


@dataclass(frozen=True)
class Router:
    """Reads the domain from a query.

    Attributes:
        domains: D names.
        weight: [D, H] float32, H the hidden size of the base, or the width of what a text gives.
        bias: [D] float32.
        threshold: a query whose likeliest domain is less probable than this has none.
        reads: one of `READERS`. Of `text`, model and tokenizer may be None everywhere.
        base: whose hidden states it reads; None of `text`.
    """

    domains: list[str]
    weight: torch.Tensor
    bias: torch.Tensor
    threshold: float = 0.5
    reads: str = "hidden"
    base: BaseId | None = None

    @classmethod
    def fit(
        cls,
        model: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        queries: Sequence[str],
        domains: Sequence[str],
        threshold: float = 0.5,
        reads: str = "hidden",
        base: BaseId | None = None,
    ) -> Router:
        """Train on queries with known domains: a logistic regression.

        Args:
            base: which one the model is; by default what its live weights say.

        Raises:
            AlignvecError: there are not at least two domains, or `reads` is unknown.
        """
        check_known("reader", reads, READERS)
        # An extra; a router of hidden states works without it.
        from sklearn.linear_model import LogisticRegression

        names = sorted(set(domains))
        if len(names) < 2:
            raise AlignvecError("a router tells domains apart: it needs queries of at least two")
        seen = _features(reads, model, tokenizer, queries)
        mean, spread, firmness = np.zeros(1), np.ones(1), 10.0
        if reads == "hidden":
            mean, spread, firmness = seen.mean(0), seen.std(0) + 1e-6, 0.1
        found = LogisticRegression(C=firmness, max_iter=1000).fit((seen - mean) / spread, domains)
        weight, bias = found.coef_ / spread, found.intercept_
        if len(names) == 2:  # scikit-learn keeps one row for two classes
            weight, bias = np.vstack([-weight, weight]) / 2, np.array([-bias[0], bias[0]]) / 2
        bias = bias - (weight * mean).sum(1)
        weight, bias = (torch.tensor(part).float().contiguous() for part in (weight, bias))
        if reads == "hidden" and model is not None:
            base = base or base_id(model)
        return cls(names, weight, bias, threshold, reads, base if reads == "hidden" else None)

    def check_base(self, base: BaseId) -> None:
        """Refuse a base whose hidden states mean something else.

        Raises:
            AlignvecError: it is not the one that the router was made on, or none is known.
        """
        if self.reads == "text":
            return
        if self.base is None:
            raise AlignvecError(
                "this router does not say which base it reads; make it anew with alignvec route"
            )
        if not self.base.same_as(base):
            raise AlignvecError(
                f"this router reads the hidden states of another base ({self.base.id}), not those "
                f"of {base.id}; make one with alignvec route {base.id}, or with --reads text"
            )

    def probabilities(
        self,
        model: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        queries: Sequence[str],
    ) -> NDArray[np.float32]:
        """[N, D]: of each query, how probable each domain is."""
        seen = torch.tensor(_features(self.reads, model, tokenizer, queries))
        return (seen @ self.weight.T + self.bias).softmax(-1).numpy()

    def domain(
        self,
        model: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        queries: Sequence[str],
    ) -> list[str | None]:
        """The domain of each query; None below the threshold."""
        found = self.probabilities(model, tokenizer, queries)
        return [
            self.domains[index] if chance >= self.threshold else None
            for index, chance in zip(found.argmax(1), found.max(1), strict=True)
        ]

    def save(self, folder: Path, overwrite: bool = False) -> Path:
        """Write `router.json` and `router.safetensors` into a new folder."""
        with atomic_folder(folder, overwrite) as partial:
            save_file({"weight": self.weight, "bias": self.bias}, partial / WEIGHTS)
            base = self.base and vars(self.base)
            told = {"domains": self.domains, "sure": self.threshold, "reads": self.reads}
            write_json(partial / CONFIG, {**told, "base": base})
        return folder

    @classmethod
    def load(cls, folder: Path) -> Router:
        """Raises: AlignvecError: a file is missing or is not a router's."""
        config = validated(_Config, read_object(folder / CONFIG), folder / CONFIG)
        weights = CheckpointWeights(folder, WEIGHTS)
        if set(weights) != {"weight", "bias"}:
            raise AlignvecError(f"{folder / WEIGHTS} holds no router")
        weight, bias = weights["weight"].float(), weights["bias"].float()
        if weight.ndim != 2 or {len(weight), *bias.shape} != {len(config.domains)}:
            raise AlignvecError(f"{folder}: the weights are not those of the domains it names")
        if not (all_finite(weight) and all_finite(bias)):
            raise AlignvecError(f"{folder / WEIGHTS} holds NaN or infinity")
        if config.reads == "text" and weight.shape[1] != WIDTH:
            raise AlignvecError(f"{folder}: the weights are not those of a router of texts")
        return cls(config.domains, weight, bias, config.sure, config.reads, config.base)


class _Config(BaseModel):
    domains: list[str]
    sure: float = Field(ge=0, le=1)
    reads: Literal["hidden", "text"] = "hidden"
    base: BaseId | None = None


def _features(
    reads: str,
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    queries: Sequence[str],
) -> NDArray[np.float32]:
    if reads == "text":
        return text_features(queries)
    return hidden_means(model, tokenizer, queries)
