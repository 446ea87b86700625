"""Which `LinearMethod` keeps the weights of each format on a kind of device; `Platform.linear_methods` hands it out."""

from __future__ import annotations

from trifocal.layers.linear import PLAIN, Linear, LinearMethod
from trifocal.quant.awq import AwqLinear
from trifocal.quant.int4 import Int4Linear
from trifocal.quant.int8 import INT8


class LinearMethods:
    """Those that compute anywhere, by the operations of `kernels.base`.

    A device whose kernels want another layout, or that computes a format in its own way, overrides some. Each method
    is asked once a layer, before it holds anything; what it returns lays the checkpoint's tensors out as they come in.
    """

    name = "torch"  # tells the layouts of one class from another's in the cache of packed weights

    def plain(self, layer: Linear) -> LinearMethod:
        """The checkpoint's weight as it is, of a layer whose activations are `layer.compute_dtype`."""
        return PLAIN

    def int8(self, layer: Linear) -> LinearMethod:
        """Rounded on loading: a scale for each output, and one for each token's activations."""
        return INT8

    def int4(self, layer: Linear, group: int) -> LinearMethod:
        """Rounded on loading, `group` inputs to a scale; activations in int8 by the same groups."""
        return Int4Linear(group)

    def awq(self, layer: Linear, group: int) -> LinearMethod:
        """A packed checkpoint's tensors, `group` inputs to a scale; activations as they are."""
        return AwqLinear(group)


METHODS = LinearMethods()
