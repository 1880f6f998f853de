"""Logistic regression on few examples: what confidences are fitted by."""

import math
from collections.abc import Sequence

import torch

SUREST = 0.99
"""Nothing fitted to some hundred examples is surer than that, nor than the rest of it of the contrary."""


def chance(weights: Sequence[float], row: Sequence[float]) -> float:
    """The probability by a regression's weights, never quite certain."""
    odds = sum(weight * one for weight, one in zip(weights, row, strict=True))
    return min(max(1 / (1 + math.exp(-max(odds, -50.0))), 1 - SUREST), SUREST)


def logistic(
    rows: Sequence[Sequence[float]],
    right: Sequence[bool],
    *,
    weight: Sequence[float] | None = None,
    width: int = 0,
    ridge: float = 0.01,
) -> tuple[float, ...]:
    """Weights of a logistic regression, held small; with no rows at all, those of an even chance.

    Args:
        rows: of each example a 1, which the ridge spares, and its features.
        right: what they are to foretell.
        weight: how much each example counts; None for all alike.
        width: length of a row, where there may be none.
        ridge: how strongly weights are held small.
    """
    weights = torch.zeros(width or len(rows[0]), dtype=torch.double, requires_grad=True)
    if rows:
        x, y = torch.tensor(rows, dtype=torch.double), torch.tensor(right, dtype=torch.double)
        share = torch.ones_like(y) if weight is None else torch.tensor(weight, dtype=torch.double)
        optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            values = torch.nn.functional.binary_cross_entropy_with_logits(x @ weights, y, reduction="none")
            value = (values * share).sum() / share.sum() + ridge * weights[1:].square().sum()
            value.backward()
            return value

        optimizer.step(loss)
    return tuple(weights.detach().tolist())
