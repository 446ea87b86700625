"""What Python and the compiled library must agree about before the first call."""

from __future__ import annotations

import ctypes

import pytest

from tests.kernels import isa
from trifocal.kernels.cpu import library
from trifocal.kernels.cpu.library import LayoutError


def shortened(layout: type[ctypes.Structure], base: type[ctypes.Structure]) -> type[ctypes.Structure]:
    """The same without its first field, as it would be if only the C++ side had got a new one."""
    return type(layout.__name__, (base,), {"_fields_": layout._fields_[1:]})


@pytest.mark.parametrize("kernel", ["linear_bf16", "rotate_f32", "attention_int8_bf16"])
def test_a_kernel_s_struct_of_another_size_is_refused(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    isa.library("1")
    layout = library._KERNELS[kernel]
    monkeypatch.setitem(library._KERNELS, kernel, shortened(layout, library.Args))
    size = ctypes.sizeof(layout)
    with pytest.raises(LayoutError, match=rf"tri_{kernel}: its struct has {size} bytes in .*, {size - 8} in .*same"):
        isa.library("1")


@pytest.mark.parametrize(("name", "struct"), [("step", "AttentionStep"), ("call", "Call")])
def test_the_other_structs_are_compared_too(name: str, struct: str, monkeypatch: pytest.MonkeyPatch) -> None:
    isa.library("1")
    monkeypatch.setattr(library, struct, shortened(getattr(library, struct), ctypes.Structure))
    with pytest.raises(LayoutError, match=rf"tri_{name}: .*\({struct}\)"):
        isa.library("1")


def test_a_wrong_struct_is_no_reason_to_go_on_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no compiler torch computes alone; this is a mistake in the sources, and said as one."""
    isa.library("1")
    monkeypatch.setattr(library, "Call", shortened(library.Call, ctypes.Structure))
    with pytest.raises(LayoutError):
        library._load.__wrapped__("1")
