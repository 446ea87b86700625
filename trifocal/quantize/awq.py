"""The two passes: `quantize`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from trifocal.config.engine import EngineArgs, EngineConfig, resolve
from trifocal.errors import ConfigError
from trifocal.layers.rotary import long_rows
from trifocal.models.base import Model
from trifocal.models.decoder import Decoder, DecoderLayer
from trifocal.models.loader import empty_model, output_rows
from trifocal.quant.awq import pack_awq
from trifocal.quant.int4 import GROUPS, round_to_int4
from trifocal.quantize.change import Change
from trifocal.quantize.folder import check_places, copy_rest, staged, write_config
from trifocal.quantize.inputs import build_prompts, embed
from trifocal.quantize.layer import Step, attention_over, record
from trifocal.quantize.samples import Sample
from trifocal.quantize.scales import search_layer
from trifocal.quantize.shards import ShardWriter
from trifocal.quantize.source import Source, release
from trifocal.types import Prompt

_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Report:
    """What came of it. Errors are squared and relative, summed over layers, on the calibration samples."""

    group: int
    num_tokens: int
    plain_error: float
    error: float
    bytes_before: int
    bytes_after: int


def quantize(
    path: Path, out: Path, samples: Iterable[Sample] | None, *, group: int | None = None, num_tokens: int = 4096,
    chat_template: str | None = None, args: EngineArgs | None = None, progress: bool = True,
) -> Report:  # fmt: skip
    """Write the AWQ form of the checkpoint `path` to the new folder `out`; without `samples` by plain rounding.

    `chat_template`, a file or its text, is for samples that are chats, in place of the checkpoint's own; `args` says
    how samples are read (limits of media, trust in the checkpoint's code). Raises `ConfigError` for what cannot be
    quantized or written; `out` is not there then.
    """
    check_places(path, out)
    config = _resolve(path, args)
    # Of the tower; float16 is slow on a CPU.
    dtype = torch.float32 if config.model.dtype == "float32" else torch.bfloat16
    with Source(path) as source:
        work = Work(config, source, empty_model(config.model.spec, dtype), progress)
        size = work.choose_group(group)
        if samples is not None:
            work.search(build_prompts(config, samples, num_tokens, chat_template), size)
        with staged(out) as folder:
            bytes_after = work.write(folder, size)
            copy_rest(path, folder)
            write_config(path, folder, size, work.kept_modules())
        before = sum((path / file).stat().st_size for file in set(source.files.values()))
        return Report(size, work.num_tokens, work.plain_error, work.error, before, bytes_after)


def _resolve(path: Path, args: EngineArgs | None) -> EngineConfig:
    config = resolve(replace(args or EngineArgs(model=""), model=str(path), device="cpu"))
    if config.model.spec.quantization:
        method = config.model.spec.quantization.get("quant_method")
        raise ConfigError(f"PATH {str(path)!r} is already quantized by {method}; give the original checkpoint")
    return config


class Work:
    """One checkpoint on its way."""

    def __init__(self, config: EngineConfig, source: Source, model: Model, progress: bool) -> None:
        self.config, self.source, self.model, self.progress = config, source, model, progress
        self.path, self.decoder = next((p, m) for p, m in model.named_modules() if isinstance(m, Decoder))
        self.layers = list(self.decoder.layers)
        self.changes: dict[str, Change] = {}
        self.num_tokens, self.plain_error, self.error = 0, 0.0, 0.0
        self.ours = {name: model.rename(name) for name in source.files}

    # ------------------------------------------------------------------------------------------ what is quantized

    def choose_group(self, wanted: int | None) -> int:
        """`wanted`, or the largest size that divides the inputs of all layers. Raises `ConfigError` without one."""
        text = self.config.model.spec.text
        if text.num_kv_heads * text.head_dim % 8:
            raise ConfigError(f"k_proj has {text.num_kv_heads * text.head_dim} outputs, but AWQ needs a multiple of 8")
        inputs = {
            "hidden_size": text.hidden_size,
            "num_heads * head_dim": text.num_heads * text.head_dim,
            "intermediate_size": text.intermediate_size,
        }
        for size in [wanted] if wanted else GROUPS:
            odd = [f"{name} {value}" for name, value in inputs.items() if value % size]
            if not odd:
                return size
        raise ConfigError(
            f"{odd[0]} of the language model is not a multiple of {size}, so groups of {size} inputs do not fit"
        )

    def kept_modules(self) -> list[str]:
        """The checkpoint's names of the model's parts beside the decoder: tower and projector."""
        kept = []
        for name, ours in self.ours.items():
            if ours is not None and not ours.startswith(f"{self.path}."):
                part = name.removeprefix("model.").partition(".")[0]
                if part not in kept:
                    kept.append(part)
        return kept

    # ------------------------------------------------------------------------------------------ first pass

    @torch.inference_mode()
    def search(self, prompts: list[Prompt], group: int) -> None:
        """Fill `changes`, with one layer in memory at a time."""
        in_layers = f"{self.path}.layers."
        by_layer: dict[int, list[str]] = {index: [] for index in range(len(self.layers))}
        front = []
        for name, ours in self.ours.items():
            if ours is None or not ours.startswith(in_layers):
                front.append(name)
            else:
                by_layer.setdefault(int(ours.removeprefix(in_layers).partition(".")[0]), []).append(name)
        self.decoder.layers = torch.nn.ModuleList()
        self.source.fill(self.model, self.model, front)
        inputs = embed(self.model, prompts, self.progress)
        self.num_tokens = len(inputs.embeds)
        text = self.config.model.spec.text
        tables = self.decoder.tables(inputs.positions, torch.float32, long_rows(text.rope, inputs.lengths))
        release(self.model)
        step = Step(tables, attention_over(text, inputs.lengths, torch.float32))
        x = inputs.embeds
        bar = tqdm(self.layers, desc="Searching scales", unit="layer", disable=None if self.progress else True)
        for index, layer in enumerate(bar):
            assert isinstance(layer, DecoderLayer)
            prefix = f"{in_layers}{index}."
            self.source.fill(self.model, layer.float(), by_layer[index], prefix)
            seen = record(layer, x, step)
            found = search_layer(layer, self._norms(by_layer[index], prefix), seen, step, group)
            self.changes |= {f"{prefix}{name}": change for name, change in found.changes.items()}
            self.plain_error += found.plain_error
            self.error += found.error
            x = seen.output
            release(layer)

    def _norms(self, names: list[str], prefix: str) -> dict[str, Tensor]:
        wanted = {f"{prefix}{norm}.weight": norm for norm in _NORMS}
        by_ours = {str(self.ours[name]): name for name in names}
        return {norm: self.source.read(by_ours[ours]) for ours, norm in wanted.items()}

    # ------------------------------------------------------------------------------------------ second pass

    @torch.inference_mode()
    def write(self, folder: Path, group: int) -> int:
        """Write all tensors, and return their bytes."""
        writer = ShardWriter(folder)
        names = sorted(self.source.files, key=lambda name: (self.source.files[name], name))
        for name in tqdm(names, desc="Writing", unit="tensor", disable=None if self.progress else True):
            tensor, ours = self.source.read(name), self.ours[name]
            if ours is None or not ours.startswith(f"{self.path}.layers."):
                writer.add(name, tensor)
            elif tensor.ndim == 1:  # a norm or a bias
                writer.add(name, self.changed(ours, tensor).to(tensor.dtype))
            else:
                for kind, values in _packed(self.changed(ours, tensor), group).items():
                    writer.add(f"{name.removesuffix('weight')}{kind}", values)
        writer.finish()
        return writer.total_bytes

    def changed(self, ours: str, tensor: Tensor) -> Tensor:
        """A tensor of the decoder's layers, weights, norms and biases alike, with scales in it; float32."""
        owner, _, kind = ours.rpartition(".")
        changed = tensor.float().clone()
        for part, rows in output_rows(self.model, owner, len(tensor)).items():
            change = self.changes.get(part)
            if change is not None:
                changed[rows] = change.bias(changed[rows]) if kind == "bias" else change.weight(changed[rows])
        return changed


def _packed(weight: Tensor, group: int) -> dict[str, Tensor]:
    q, scale, zero = round_to_int4(weight, group)
    return {"qweight": pack_awq(q.t()), "qzeros": pack_awq(zero.t()), "scales": scale.t()}
