"""The CPU's kernels behind `Kernels`; what they do not cover goes to torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trifocal.kernels.base import Draws, Kernels, Likely
from trifocal.kernels.blocks import all_rows, int8_of_words
from trifocal.kernels.cpu.library import SUFFIX, Kernel, Library
from trifocal.kernels.int4 import Int4Weight


class CpuKernels(Kernels):
    """See `Kernels`; and the products of weights in blocks (`platforms.cpu_linear` lays them out).

    Threads are torch's, as many as `torch.get_num_threads()`.
    """

    def __init__(self, library: Library) -> None:
        self.name = library.name
        self._linear = library.kernels["linear_bf16"]
        self._gated = library.kernels.get("linear_gated_bf16")
        self._gated_int8 = {
            dtype: kernel
            for dtype, suffix in SUFFIX.items()
            if (kernel := library.kernels.get(f"linear_int8_gated_{suffix}")) is not None
        }
        self._linear_int4 = library.kernels["linear_int4"]
        self._linear_int4_int8 = library.kernels["linear_int4_int8"]
        self._choose, self._likely = library.kernels["choose"], library.kernels["likely"]
        self._segments = {dtype: library.kernels[f"segments_{suffix}"] for dtype, suffix in SUFFIX.items()}
        self._norm, self._norm_heads, self._silu, self._rotate, self._linear_int8 = (
            {dtype: library.kernels[f"{name}_{suffix}"] for dtype, suffix in SUFFIX.items()}
            for name in ("rms_norm", "norm_heads", "silu_and_mul", "rotate", "linear_int8")
        )

    def linear_blocks(self, x: Tensor, weight: Tensor, out_features: int, bias: Tensor | None) -> Tensor:
        """`linear` with a bfloat16 weight in blocks of words int32 [out / 16, in / 2, 16].

        Any number of rows, each output a chain of sums along the inputs: the same in any company.
        """
        in_features = 2 * weight.shape[1]
        rows = x.numel() // in_features
        if x.dtype != torch.bfloat16 or rows == 0:
            return self.linear(x, all_rows(weight, out_features).view(torch.bfloat16), bias)
        return _product(self._linear, x, (weight,), bias, out_features, rows, out_features, in_features)

    def gated_linear_blocks(self, x: Tensor, weight: Tensor, out_features: int, bias: Tensor | None) -> Tensor:
        """`silu_and_mul` of `linear_blocks`: x [..., in] -> [..., out / 2].

        By tiles, many rows are gated before they are stored: as rounded as in two steps.
        """
        in_features = 2 * weight.shape[1]
        rows = x.numel() // in_features
        if self._gated is None or x.dtype != torch.bfloat16 or not _is_gated_by_tiles(rows, out_features):
            return self.silu_and_mul(self.linear_blocks(x, weight, out_features, bias))
        return _product(self._gated, x, (weight,), bias, out_features // 2, rows, out_features, in_features)

    def linear_int8_blocks(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """`linear_int8` with a weight in blocks of words int32 [out / 16, in / 4 rounded up, 16].

        Any number of rows. Sums are exact integers, so a row's result is the same in any company.
        """
        kernel = self._linear_int8.get(x.dtype)
        out_features, in_features = len(scale), x.shape[-1]
        rows = x.numel() // in_features
        if kernel is None or rows == 0:
            return self.linear_int8(x, int8_of_words(all_rows(weight, out_features), in_features), scale, bias)
        return _product(kernel, x, (weight, scale), bias, out_features, rows, out_features, in_features)

    def gated_linear_int8_blocks(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """`silu_and_mul` of `linear_int8_blocks`: x [..., in] -> [..., out / 2]."""
        kernel = self._gated_int8.get(x.dtype)
        out_features, in_features = len(scale), x.shape[-1]
        rows = x.numel() // in_features
        if kernel is None or not _is_gated_by_tiles(rows, out_features):
            return self.silu_and_mul(self.linear_int8_blocks(x, weight, scale, bias))
        return _product(kernel, x, (weight, scale), bias, out_features // 2, rows, out_features, in_features)

    def linear_int4(self, x: Tensor, weight: Int4Weight, bias: Tensor | None) -> Tensor:
        """Any number of rows, whole q times activations, scaled in float32 group by group: the same in any company."""
        y = _int4_product(self._linear_int4, x, weight, bias)
        return super().linear_int4(x, weight, bias) if y is None else y

    def linear_int4_int8(self, x: Tensor, weight: Int4Weight, bias: Tensor | None) -> Tensor:
        """Any number of rows. Sums of a group are exact integers, scaled in float32: the same in any company."""
        y = _int4_product(self._linear_int4_int8, x, weight, bias)
        return super().linear_int4_int8(x, weight, bias) if y is None else y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """One pass over memory; rows may lie apart."""
        function = self._norm.get(x.dtype)
        if function is None or weight.dtype != x.dtype:
            return super().rms_norm(x, weight, eps)
        size = x.shape[-1]
        y = x.new_empty(x.shape)
        x = x.reshape(-1, size)
        if x.stride(1) != 1:
            x = x.contiguous()
        function(
            x.data_ptr(), None, weight.data_ptr(), None, y.data_ptr(), x.stride(0), len(x), size, 0.0, eps,
            torch.get_num_threads(),
        )  # fmt: skip
        return y

    def add_rms_norm(
        self, x: Tensor, delta: Tensor, scale: float, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Both in one pass."""
        function = self._norm.get(x.dtype)
        if function is None or not (weight.dtype == delta.dtype == x.dtype):
            return super().add_rms_norm(x, delta, scale, weight, eps)
        x, delta = x.contiguous(), delta.contiguous()
        rows, size = x.shape
        total, y = torch.empty_like(x), torch.empty_like(x)
        function(
            x.data_ptr(), delta.data_ptr(), weight.data_ptr(), total.data_ptr(), y.data_ptr(), size, rows, size,
            scale, eps, torch.get_num_threads(),
        )  # fmt: skip
        return total, y

    def norm_heads(self, x: Tensor, num_first: int, first: Tensor, other: Tensor, eps: float) -> Tensor:
        """Heads of a row must lie side by side, rows may lie apart (a part of a qkv product)."""
        function = self._norm_heads.get(x.dtype)
        rows, heads, size = x.shape
        if function is None or not (first.dtype == other.dtype == x.dtype):
            return super().norm_heads(x, num_first, first, other, eps)
        if x.stride(2) != 1 or x.stride(1) != size:
            x = x.contiguous()
        y = x.new_empty((rows, heads, size))
        function(
            x.data_ptr(), first.data_ptr(), other.data_ptr(), y.data_ptr(), x.stride(0), rows, heads, num_first, size,
            eps, torch.get_num_threads(),
        )  # fmt: skip
        return y

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """Rounds where torch does: after silu, and after the product."""
        function = self._silu.get(gate_up.dtype)
        if function is None:
            return super().silu_and_mul(gate_up)
        gate_up = gate_up.contiguous()
        rows, size = len(gate_up), gate_up.shape[1] // 2
        y = gate_up.new_empty((rows, size))
        function(gate_up.data_ptr(), y.data_ptr(), rows, size, torch.get_num_threads())
        return y

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Heads of a row must lie side by side, rows may lie apart (a part of a qkv product)."""
        function = self._rotate.get(x.dtype)
        rows, heads, size = x.shape
        if function is None or not (cos.dtype == sin.dtype == x.dtype):
            return super().rotate(x, cos, sin)
        if x.stride(2) != 1 or x.stride(1) != size:
            x = x.contiguous()
        cos, sin = cos.contiguous(), sin.contiguous()
        y = x.new_empty((rows, heads, size))
        function(
            x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr(), x.stride(0), rows, heads, size // 2,
            torch.get_num_threads(),
        )  # fmt: skip
        return y

    def segment_attention(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor | None:
        """Heads of a row must lie side by side, rows may lie apart (parts of a qkv product)."""
        function = self._segments.get(q.dtype)
        _, heads, size = q.shape
        if function is None or not (q.dtype == k.dtype == v.dtype) or size * q.dtype.itemsize % 16:
            return None
        q, k, v = (x if x.stride(2) == 1 and x.stride(1) == size else x.contiguous() for x in (q, k, v))
        out = q.new_empty(q.shape)
        function(
            q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), lengths.data_ptr(),
            q.stride(0), k.stride(0), v.stride(0), len(lengths), heads, size, size**-0.5, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def choose(self, logits: Tensor, vocab: int, draws: Draws | None) -> tuple[Tensor, Tensor] | None:
        """No row is sorted or copied; several threads take a row each."""
        if not _are_rows(logits):
            return None
        tokens = torch.empty(len(logits), dtype=torch.int64)
        largest = torch.empty(len(logits))
        how = [None] * 5 if draws is None else [draws.scale, draws.floor, draws.top_k, draws.top_p, draws.noise]
        addresses = [None if each is None else each.data_ptr() for each in (logits, *how, tokens, largest)]
        self._choose(*addresses, logits.stride(0), len(logits), vocab, torch.get_num_threads())
        return tokens, largest

    def likely(
        self, logits: Tensor, vocab: int, rows: Sequence[int], chosen: Sequence[int], counts: Sequence[int]
    ) -> list[Likely] | None:  # fmt: skip
        if not _are_rows(logits):
            return None
        wanted = [min(count, vocab) for count in counts]
        given = torch.tensor([[*rows], [*chosen], wanted])
        largest, own = torch.zeros(2, len(rows))
        total, rank = torch.zeros(2, len(rows), dtype=torch.int64)
        values = torch.zeros(len(rows), max(wanted))
        ids = torch.zeros_like(values, dtype=torch.int64)
        tensors = (logits, *given, largest, own, values, total, rank, ids)
        self._likely(
            *(each.data_ptr() for each in tensors), logits.stride(0), len(rows), vocab, max(wanted), math.log2(math.e),
            torch.get_num_threads(),
        )  # fmt: skip
        return [
            Likely(
                largest=float(largest[i]),
                total=int(total[i]),
                own=float(own[i]),
                rank=int(rank[i]),
                values=values[i, :count].tolist(),
                ids=ids[i, :count].tolist(),
            )
            for i, count in enumerate(wanted)
        ]


def _are_rows(logits: Tensor) -> bool:
    return logits.dtype == torch.float32 and logits.device.type == "cpu" and logits.stride(1) == 1


def _product(
    kernel: Kernel, x: Tensor, weights: tuple[Tensor, ...], bias: Tensor | None, width: int, *sizes: int
) -> Tensor:  # fmt: skip
    """What a kernel for linear layers makes of all rows of x, `width` numbers of each."""
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], width))
    kernel(
        x.data_ptr(), *(each.data_ptr() for each in weights), None if bias is None else bias.data_ptr(), y.data_ptr(),
        *sizes, torch.get_num_threads(),
    )  # fmt: skip
    return y


def _int4_product(kernel: Kernel, x: Tensor, weight: Int4Weight, bias: Tensor | None) -> Tensor | None:
    """None: no kernel does it."""
    rows, out_features = x.numel() // weight.in_features, weight.out_features
    if x.dtype != torch.bfloat16 or rows == 0 or weight.group % 16:
        return None
    operands = (weight.words, weight.scale, weight.zero)
    return _product(kernel, x, operands, bias, out_features, rows, out_features, weight.in_features, weight.group)


def _is_gated_by_tiles(rows: int, out_features: int) -> bool:
    return rows > 16 and out_features % 32 == 0
