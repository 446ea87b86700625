"""Which linear layers of a model are kept in which format."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from trifocal.errors import ConfigError
from trifocal.layers.embedding import Embedding
from trifocal.layers.linear import PLAIN, Linear, LinearMethod, MergedLinear
from trifocal.model_spec import Quantization
from trifocal.quant.int4 import GROUPS
from trifocal.quant.methods import METHODS, LinearMethods

_Choice = Callable[[str, Linear], LinearMethod]


def quantize_layers(
    decoder: nn.Module, prefix: str, quantization: Quantization, names: frozenset[str],
    methods: LinearMethods = METHODS,
) -> None:  # fmt: skip
    """Give the linear layers under `decoder` their formats, before they hold anything.

    `prefix` is the path of `decoder` in its model, `names` those of the checkpoint's packed weights, as our paths.
    Raises `ConfigError` where a format does not fit.
    """
    is_tied = not any(isinstance(module, Linear) for name, module in decoder.named_children() if name == "lm_head")
    choice: _Choice
    if quantization.method == "awq":
        choice = _awq(prefix, quantization, names, methods)
    else:
        choice = _rounded(is_int4=quantization.method == "int4", is_tied=is_tied, methods=methods)
    for path, layer in decoder.named_modules():
        if isinstance(layer, Linear):
            method = choice(path, layer)
            if method is not PLAIN:
                layer.use(method)


def quantize_towers(model: nn.Module, quantization: Quantization, methods: LinearMethods = METHODS) -> None:
    """What is left after `quantize_layers`, the towers and what joins them to the language model: int8 along with it.

    Other formats are there to save memory and make decoding quick; for a tower, which computes many rows at a time,
    only int8 is quicker than the weights as they are.
    """
    if quantization.method != "int8":
        return
    for layer in model.modules():
        if isinstance(layer, Linear) and not isinstance(layer, Embedding) and layer.method is PLAIN:
            layer.use(methods.int8(layer))


def lay_out_the_rest(model: nn.Module, methods: LinearMethods) -> None:
    """Let weights that no format was chosen for lie as the device wants plain ones."""
    for layer in model.modules():
        if isinstance(layer, Linear) and layer.method is PLAIN:
            method = methods.plain(layer)
            if method is not PLAIN:
                layer.use(method)


def _rounded(*, is_int4: bool, is_tied: bool, methods: LinearMethods = METHODS) -> _Choice:
    """int8 everywhere, or int4 with an int8 head. A table that is only looked up stays as it is."""

    def choose(path: str, layer: Linear) -> LinearMethod:
        if isinstance(layer, Embedding):
            return methods.int8(layer) if is_tied else PLAIN
        if not is_int4 or path == "lm_head":
            return methods.int8(layer)
        group = next((size for size in GROUPS if layer.whole_in_features % size == 0), None)
        if group is None:
            return methods.int8(layer)
        _check_share(path, layer, group)
        return methods.int4(layer, group)

    return choose


def _awq(prefix: str, quantization: Quantization, names: frozenset[str], methods: LinearMethods) -> _Choice:
    """AWQ where the checkpoint has it: lists of layers in config.json are not reliable, tensors are."""

    def choose(path: str, layer: Linear) -> LinearMethod:
        owner = f"{prefix}.{path}"
        first = owner
        if isinstance(layer, MergedLinear):
            first = f"{owner.rpartition('.')[0]}.{next(iter(layer.parts))}"
        if f"{first}.qweight" not in names:
            return PLAIN
        group = layer.whole_in_features if quantization.group_size == -1 else quantization.group_size
        sizes = layer.parts.values() if isinstance(layer, MergedLinear) else [layer.out_features]
        if layer.whole_in_features % group or group % 8 or any(size % 8 for size in sizes):
            ranks = f" on each of {layer.group.size} ranks" if layer.group.size > 1 else ""
            raise ConfigError(
                f"config.json: group_size {group} does not fit {owner} with {layer.whole_in_features} inputs and "
                f"{layer.out_features} outputs{ranks}"
            )
        _check_share(owner, layer, group)
        return methods.awq(layer, group)

    return choose


def _check_share(owner: str, layer: Linear, group: int) -> None:
    """A rank's inputs must be whole groups: one that is cut would be rounded otherwise than on one device."""
    if layer.in_features % group:
        raise ConfigError(
            f"--tensor-parallel-size {layer.group.size}: {owner} has {layer.whole_in_features} inputs in groups of "
            f"{group}, which that many ranks cannot share evenly; choose a smaller size"
        )
