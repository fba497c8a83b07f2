"""The losses of grades that torch has not: of the order of pictures, and of a value with its standard deviation."""

from __future__ import annotations

import torch
from torch import nn

MARGIN = 1.0
"""Lead that a better picture shall have, in standard deviations of the grades; its grade's own lead where that is
less."""
_ROUNDING = 0.25
_MOST_PARTNERS = 32
_LOG_DEVIATIONS = (-5.0, 5.0)
"""The range in which the loss follows the logarithm of a standard deviation, in units of the grades'."""


class OrderLoss(nn.Module):
    """`ab`: a margin ranking loss on pairs of the rows that it is given.

    The hinge's corner is rounded, so that L-BFGS can follow it. Pairs are drawn by shifting the rows against themselves
    (all pairs of up to twice _MOST_PARTNERS rows), so no pair is drawn in a loop; rows that are shuffled, as those of a
    batch are, meet others every time.
    """

    def forward(self, values: torch.Tensor, grades: torch.Tensor) -> torch.Tensor:
        """(n, 1) values and (n, 1) grades → the mean loss of the pairs whose grades differ; 0 where there is none."""
        first, second = partners(len(values), values.device)
        value, grade = values[:, 0], grades[:, 0]
        difference = grade[first] - grade[second]
        lead = (value[first] - value[second]) * difference.sign()
        losses = rounded_hinge(difference.abs().clamp(max=MARGIN) - lead) * (difference != 0)
        return losses.sum() / (difference != 0).sum().clamp(min=1)

    def of_choices(self, winner: torch.Tensor, loser: torch.Tensor) -> torch.Tensor:
        """(m, 1) values of the better and the other pictures → the mean loss."""
        return rounded_hinge(MARGIN - (winner - loser)).mean()


class GaussianLoss(nn.Module):
    """`nll`: the negative log likelihood of grades under a normal distribution, without its constant."""

    def forward(self, values: torch.Tensor, grades: torch.Tensor) -> torch.Tensor:
        """(n, 2) means and logarithms of standard deviations, (n, 1) grades → the mean loss."""
        log_deviation = values[:, 1].clamp(*_LOG_DEVIATIONS)
        distance = (grades[:, 0] - values[:, 0]) * torch.exp(-log_deviation)
        return (distance.square() / 2 + log_deviation).mean()


def partners(count: int, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Two (p,) index tensors: each of `count` rows with those at some distances behind it, as if they lay in a ring."""
    farthest = max(count // 2, 1)
    distances = torch.linspace(1, farthest, min(farthest, _MOST_PARTNERS), device=device).long()
    rows = torch.arange(count, device=device)
    return rows.repeat(len(distances)), ((rows[None] + distances[:, None]) % max(count, 1)).reshape(-1)


def rounded_hinge(shortfall: torch.Tensor) -> torch.Tensor:
    """What a lead falls short of its margin, and nearly 0 where it does not."""
    return nn.functional.softplus(shortfall / _ROUNDING) * _ROUNDING
