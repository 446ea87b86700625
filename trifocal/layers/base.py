"""What layers with kernels have in common."""

from __future__ import annotations

from torch import nn

from trifocal.kernels.base import TORCH, Kernels


class Layer(nn.Module):
    """A module that computes with the kernels of its device; plain torch until `use_kernels` says otherwise."""

    kernels: Kernels = TORCH


def use_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Let every layer of `model` compute with `kernels`."""
    for module in model.modules():
        if isinstance(module, Layer):
            module.kernels = kernels
