"""Cutting the largest weights of a group, where the finer steps for the others are worth more."""

from __future__ import annotations

import torch
from torch import Tensor

from trifocal.quantize.change import rounded

_SHRINK = 20  # tried are 1, 0.95 .. 0.5 times the largest magnitude
_TRIED = 10
_ROWS = 512  # tokens that errors are measured on


def find_limit(weight: Tensor, x: Tensor, group: int) -> Tensor:
    """weight float32 [out, in] and its inputs x [tokens, in] -> limits of magnitudes [out, in / group].

    The limit of each row and group is chosen by itself, by the squared error of what it adds to the output.
    """
    x = x[:: max(1, -(-len(x) // _ROWS))]
    limits = []
    for columns, inputs in zip(torch.split(weight, group, dim=1), torch.split(x, group, dim=1), strict=True):
        limits.append(_find(columns, inputs.t() @ inputs, group))
    return torch.stack(limits, dim=1)


def _find(weight: Tensor, gram: Tensor, group: int) -> Tensor:
    """weight [out, group] and x^T x [group, group] of one group -> [out]."""
    most = weight.abs().amax(1)
    best, least = most.clone(), torch.full_like(most, float("inf"))
    for step in range(_TRIED + 1):
        limit = most * (1 - step / _SHRINK)
        lost = rounded(weight.clamp(-limit[:, None], limit[:, None]), group) - weight
        error = ((lost @ gram) * lost).sum(1)
        is_better = error < least
        least, best = torch.where(is_better, error, least), torch.where(is_better, limit, best)
    return best
