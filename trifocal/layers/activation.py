"""Activations."""

from __future__ import annotations

from torch import Tensor

from trifocal.layers.base import Layer


class SiluAndMul(Layer):
    """silu(gate) * up."""

    def forward(self, gate_up: Tensor) -> Tensor:
        """[rows, 2 * size], the gate's half first -> [rows, size]."""
        return self.kernels.silu_and_mul(gate_up)
