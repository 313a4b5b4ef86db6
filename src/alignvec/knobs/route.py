"""Routing: from a query to its domain, so that a knob acts on its own domain's queries alone.

A linear classifier on the base model's own hidden states (the mean over the query's tokens, at half
the depth): one short forward pass a query and no second model. A knob over-generalises as ever; a
query of another domain just never meets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from alignvec.errors import AlignvecError
from alignvec.files import checked, read_object, whole_folder, write_json
from alignvec.models import prompt_tokens
from alignvec.vector.weights import CheckpointWeights, all_finite

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from alignvec.knobs.model import KnobModel
    from alignvec.vector import AlignmentVector

_BATCH = 16
CONFIG, WEIGHTS = "router.json", "router.safetensors"


@dataclass(frozen=True)
class Router:
    """Reads the domain from a query.

    Attributes:
        domains: D names.
        weight: [D, H] float32, H the hidden size of the base.
        bias: [D] float32.
        sure: a query whose likeliest domain is less probable than this has none.
    """

    domains: list[str]
    weight: torch.Tensor
    bias: torch.Tensor
    sure: float = 0.5

    @classmethod
    def fit(
        cls,
        model: KnobModel,
        queries: Sequence[str],
        domains: Sequence[str],
        sure: float = 0.5,
    ) -> Router:
        """Train on queries with known domains: a logistic regression.

        Raises:
            AlignvecError: there are not at least two domains.
        """
        import numpy as np
        import torch
        from sklearn.linear_model import LogisticRegression

        names = sorted(set(domains))
        if len(names) < 2:
            raise AlignvecError("a router tells domains apart: it needs queries of at least two")
        hidden = hidden_means(model, queries)
        mean, spread = hidden.mean(0), hidden.std(0) + 1e-6
        found = LogisticRegression(C=0.1, max_iter=1000).fit((hidden - mean) / spread, domains)
        weight, bias = found.coef_ / spread, found.intercept_
        if len(names) == 2:  # scikit-learn keeps one row for two classes
            weight, bias = np.vstack([-weight, weight]) / 2, np.array([-bias[0], bias[0]]) / 2
        bias = bias - weight @ mean
        return cls(names, torch.tensor(weight).float(), torch.tensor(bias).float(), sure)

    def probabilities(self, model: KnobModel, queries: Sequence[str]) -> NDArray[np.float32]:
        """[N, D]: of each query, how probable each domain is."""
        import torch

        logits = torch.tensor(hidden_means(model, queries)) @ self.weight.T + self.bias
        return logits.softmax(-1).numpy()

    def domain(self, model: KnobModel, queries: Sequence[str]) -> list[str | None]:
        """The domain of each query; None where it is not sure."""
        found = self.probabilities(model, queries)
        return [
            self.domains[index] if chance >= self.sure else None
            for index, chance in zip(found.argmax(1), found.max(1), strict=True)
        ]

    def applied(self, model: KnobModel, queries: Sequence[str]) -> NDArray[np.bool_]:
        """[N, K]: which knobs act on each query, those of its domain."""
        import numpy as np

        of_knob = [domain_of(knob, vector) for knob, vector in model.vectors.items()]
        found = self.domain(model, queries)
        return np.array([[domain == own for own in of_knob] for domain in found])

    def save(self, folder: Path, overwrite: bool = False) -> Path:
        """Write `router.json` and `router.safetensors` into a new folder."""
        from safetensors.torch import save_file

        with whole_folder(folder, overwrite) as partial:
            save_file({"weight": self.weight, "bias": self.bias}, partial / WEIGHTS)
            write_json(partial / CONFIG, {"domains": self.domains, "sure": self.sure})
        return folder

    @classmethod
    def load(cls, folder: Path) -> Router:
        """Raises: AlignvecError: a file is missing or is not a router's."""
        config = checked(_Config, read_object(folder / CONFIG), folder / CONFIG)
        weights = CheckpointWeights(folder, WEIGHTS)
        if set(weights) != {"weight", "bias"}:
            raise AlignvecError(f"{folder / WEIGHTS} holds no router")
        weight, bias = weights["weight"].float(), weights["bias"].float()
        if weight.ndim != 2 or {len(weight), *bias.shape} != {len(config.domains)}:
            raise AlignvecError(f"{folder}: the weights are not those of the domains it names")
        if not (all_finite(weight) and all_finite(bias)):
            raise AlignvecError(f"{folder / WEIGHTS} holds NaN or infinity")
        return cls(config.domains, weight, bias, config.sure)


class _Config(BaseModel):
    domains: list[str]
    sure: float = Field(ge=0, le=1)


def domain_of(knob: str, vector: AlignmentVector) -> str:
    """The domain that a vector was trained on; the knob's name if it does not say."""
    domain = vector.training.get("domain")
    return domain if isinstance(domain, str) and domain else knob


def hidden_means(model: KnobModel, queries: Sequence[str]) -> NDArray[np.float32]:
    """[N, H] float32: hidden states of the base at half its depth, means over a query's tokens."""
    import numpy as np
    import torch

    tokens = [prompt_tokens(model.tokenizer, query) for query in queries]
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    means = np.zeros((len(tokens), model.model.config.get_text_config().hidden_size), np.float32)
    with model.at({}), torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            ids = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(tokens[index]) for index in batch], batch_first=True
            ).to(model.model.device)
            lengths = torch.tensor([len(tokens[index]) for index in batch], device=ids.device)
            mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
            states = model.model(
                input_ids=ids, attention_mask=mask.long(), output_hidden_states=True,
                use_cache=False, logits_to_keep=1,
            ).hidden_states  # fmt: skip
            middle = states[len(states) // 2].float() * mask[:, :, None]
            means[batch] = (middle.sum(1) / lengths[:, None]).cpu().numpy()
    return means
