"""The two-layer MLP of vision transformers."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from trifocal.layers.linear import Linear


class GeluMLP(nn.Module):
    """fc2(gelu(fc1(x))), both with bias; `approximate` as in `torch.nn.functional.gelu`."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, *, approximate: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__()
        self.fc1 = Linear(hidden_size, intermediate_size, bias=True)
        self.fc2 = Linear(intermediate_size, hidden_size, bias=True)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """[rows, hidden_size] -> [rows, hidden_size]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))
        return out
