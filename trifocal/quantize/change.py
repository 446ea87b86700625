"""What is done to weights before they are rounded, so that rounding hurts less and products stay what they were."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trifocal.quant.int4 import round_to_int4


@dataclass
class Change:
    """Of one linear layer, weight [out, in], or of one norm, weight [out]. What is None is left alone.

    times: float32 [in], multiplies the inputs' columns. over: float32 [out], divides rows, biases and norms.
    limit: float32 [out, in / group], to which weights are cut after the other two.
    """

    times: Tensor | None = None
    over: Tensor | None = None
    limit: Tensor | None = None

    def weight(self, weight: Tensor) -> Tensor:
        """The changed weight, float32."""
        changed = weight.float()
        if self.times is not None:
            changed = changed * self.times
        if self.over is not None:
            changed = changed / (self.over if changed.ndim == 1 else self.over[:, None])
        if self.limit is not None:
            groups = changed.view(*self.limit.shape, -1)
            changed = groups.clamp(-self.limit[..., None], self.limit[..., None]).flatten(1)
        return changed

    def bias(self, bias: Tensor) -> Tensor:
        """The changed bias, float32 [out]."""
        return bias.float() if self.over is None else bias.float() / self.over


def rounded(weight: Tensor, group: int) -> Tensor:
    """Float32 weight [out, in] as it comes back from int4."""
    q, scale, zero = round_to_int4(weight, group)
    groups = q.view(*scale.shape, group).float()
    wide: Tensor = (groups - zero.float()[..., None]) * scale.float()[..., None]
    return wide.flatten(1)


def spread(weight: Tensor, scale: Tensor, group: int) -> Tensor:
    """What a layer effectively computes with after `scale` [in] was multiplied in, rounded and divided out again."""
    return rounded(weight * scale, group) / scale


def exact_over(norm: Tensor, scale: Tensor) -> Tensor:
    """Near `scale`, such that a norm's weight divided by it can be kept in the norm's own type without rounding.

    Otherwise every norm that takes scales in would lose three digits of them (bfloat16).
    """
    divided = (norm.float() / scale).to(norm.dtype).float()
    exact = norm.float() / divided
    return torch.where(exact.isfinite() & (exact > 0), exact, torch.ones_like(exact))
