"""Objectives without a reference, on mean log-likelihoods s of responses: TRL's trainer has none.

They compare what a preference rate compares, so a margin is bounded by what the rate can see. All
take the scores of P pairs, in nats a token, and give a loss for each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import logsigmoid

# chosen [P], rejected [P], the row of each pair [P], beta, margin -> [P]
Objective = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, float, float],
    torch.Tensor,
]


def simpo(
    chosen: torch.Tensor, rejected: torch.Tensor, rows: torch.Tensor, beta: float, margin: float
) -> torch.Tensor:
    """-log sigmoid(beta (s_w - s_l) - margin) (SimPO, Meng et al. 2024, arXiv 2405.14734)."""
    return -logsigmoid(beta * (chosen - rejected) - margin)


def orpo(
    chosen: torch.Tensor, rejected: torch.Tensor, rows: torch.Tensor, beta: float, margin: float
) -> torch.Tensor:
    """-beta log sigmoid of the log odds ratio (ORPO, Hong et al. 2024, arXiv 2403.07691)."""
    return -beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def softmax(
    chosen: torch.Tensor, rejected: torch.Tensor, rows: torch.Tensor, beta: float, margin: float
) -> torch.Tensor:
    """-log of the share of the level in the softmax of beta s over all levels of a query.

    It is one number a row; each of the row's pairs carries it.
    """
    relative = torch.exp(beta * (rejected - chosen))
    others = torch.zeros(int(rows.max()) + 1, device=rows.device).index_add(0, rows, relative)
    return torch.log1p(others)[rows]


def _log_odds(score: torch.Tensor) -> torch.Tensor:
    return score - torch.log1p(-torch.exp(score.clamp(max=-1e-4)))


OBJECTIVES: dict[str, Objective] = {"simpo": simpo, "orpo": orpo, "softmax": softmax}
