"""MiniCPM-V composed from parts of transformers and torch: no released class exists there. Written after the models'
own code, not after ours: slices are cut and normalised on their own, towers are Idefics2's and plain torch.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import tiny_minicpmv as tiny
from tests.oracle import Reference, Sample
from trifocal.media.media import Image, Media

Weights = dict[str, Tensor]


@cache
def weights(version: tiny.Version) -> Weights:
    """Those of `tiny.write_checkpoint` with seed 0."""
    return tiny.tensors(version)


def part(tensors: Weights, prefix: str) -> Weights:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


# ------------------------------------------------------------------------------------------------- slices


def near(value: float) -> int:
    """The nearest positive multiple of 14, halves to even."""
    return max(1, round(value / 14)) * 14


def fit(width: float, height: float, resolution: int, grow: bool) -> tuple[int, int]:
    """The size nearest to the resolution's area whose sides are multiples of 14, aspect about kept."""
    if width * height <= resolution * resolution and not grow:
        return near(width), near(height)
    h = int(resolution / math.sqrt(width / height))
    return near(int(h * (width / height))), near(h)


def grid_for(width: int, height: int, resolution: int, most: int) -> tuple[int, int] | None:
    """(columns, rows) or None where nothing is cut."""
    multiple = min(math.ceil(width * height / (resolution * resolution)), most)
    if multiple <= 1:
        return None
    best, least = None, math.inf
    for count in range(multiple - 1, multiple + 2):
        for columns in range(1, count + 1):
            if count == 1 or count > most or count % columns:
                continue
            error = abs(math.log(width / height) - math.log(columns / (count // columns)))
            if error < least:
                best, least = (columns, count // columns), error
    return best


def cut(picture: PIL.Image.Image, resolution: int, most: int = 9) -> list[PIL.Image.Image]:
    """Overview and slices of a picture."""
    width, height = picture.size
    grid = grid_for(width, height, resolution, most)
    if grid is None:
        return [picture.resize(fit(width, height, resolution, True), PIL.Image.Resampling.BICUBIC)]
    columns, rows = grid
    overview = picture.resize(fit(width, height, resolution, False), PIL.Image.Resampling.BICUBIC)
    cell = [max(round(side / count) * count, count) / count for side, count in ((width, columns), (height, rows))]
    w, h = fit(cell[0], cell[1], resolution, True)
    fine = picture.resize((w * columns, h * rows), PIL.Image.Resampling.BICUBIC)
    boxes = [(x * w, y * h, x * w + w, y * h + h) for y in range(rows) for x in range(columns)]
    return [overview, *(fine.crop(box) for box in boxes)]


def pixel_values(tile: PIL.Image.Image) -> Tensor:
    """float32 [1, 3, height, width], from -1 to 1."""
    scaled = np.asarray(tile).astype(np.float32) / 255
    return torch.from_numpy((scaled - np.float32(0.5)) / np.float32(0.5)).permute(2, 0, 1)[None]


# ------------------------------------------------------------------------------------------------- towers


@cache
def navit_tower(version: tiny.Version) -> nn.Module:
    """transformers' tower with the weights of 2.5 or 2.6."""
    from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

    settings: dict[str, Any] = {**tiny.VISION, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    tower = Idefics2VisionTransformer._from_config(Idefics2VisionConfig(**settings), attn_implementation="eager")
    tower.load_state_dict(part(weights(version), "vpm."))
    return tower.eval()


def navit(version: tiny.Version, tile: PIL.Image.Image) -> Tensor:
    """[h * w, hidden]: the tower of 2.5 and 2.6."""
    mask = torch.ones(1, tile.height // tiny.PATCH, tile.width // tiny.PATCH, dtype=torch.bool)
    out = navit_tower(version)(pixel_values=pixel_values(tile), patch_attention_mask=mask)
    return out.last_hidden_state[0]


def timm_vit(version: tiny.Version, tile: PIL.Image.Image) -> Tensor:
    """[h * w, hidden]: the tower of 2.0."""
    own = part(weights(version), "vpm.")
    size = own["norm.weight"].shape
    x = F.conv2d(pixel_values(tile), own["patch_embed.proj.weight"], own["patch_embed.proj.bias"], stride=tiny.PATCH)
    side = math.isqrt(own["pos_embed"].shape[1])
    table = own["pos_embed"].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    x = (x + F.interpolate(table, size=x.shape[2:], mode="bicubic", antialias=True)).flatten(2).transpose(1, 2)
    for index in range(tiny.VISION["num_hidden_layers"] - 1):
        block = part(own, f"blocks.{index}.")
        attention = nn.MultiheadAttention(size[0], tiny.VISION["num_attention_heads"], batch_first=True)
        names = {"in_proj_": "attn.qkv.", "out_proj.": "attn.proj."}
        attention.load_state_dict({f"{a}{k}": block[f"{b}{k}"] for a, b in names.items() for k in ("weight", "bias")})
        y = F.layer_norm(x, size, block["norm1.weight"], block["norm1.bias"], 1e-6)
        x = x + attention(y, y, y, need_weights=False)[0]
        y = F.layer_norm(x, size, block["norm2.weight"], block["norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        x = x + F.linear(y, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    return F.layer_norm(x, size, own["norm.weight"], own["norm.bias"], 1e-6)[0]


def sincos(h: int, w: int) -> Tensor:
    """[h * w, HIDDEN]: column in the first half of the channels, row in the second; sines before cosines."""
    quarter = tiny.HIDDEN // 4
    table = np.empty((h, w, tiny.HIDDEN), np.float64)
    for k in range(quarter):
        rate = 10000.0 ** (-k / quarter)
        table[:, :, k] = np.sin(np.arange(w) * rate)
        table[:, :, quarter + k] = np.cos(np.arange(w) * rate)
        table[:, :, 2 * quarter + k] = np.sin(np.arange(h) * rate)[:, None]
        table[:, :, 3 * quarter + k] = np.cos(np.arange(h) * rate)[:, None]
    return torch.from_numpy(table.reshape(h * w, -1)).float()


def resample(version: tiny.Version, features: Tensor, h: int, w: int) -> Tensor:
    """[queries, HIDDEN] of one slice."""
    own = part(weights(version), "resampler.")

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (tiny.HIDDEN,), own[f"{name}.weight"], own[f"{name}.bias"], 1e-6)

    attention = nn.MultiheadAttention(tiny.HIDDEN, tiny.HIDDEN // 128)
    attention.load_state_dict(part(own, "attn."))
    values = norm(features @ own["kv_proj.weight"].T, "ln_kv")
    queries = norm(own["query"], "ln_q")
    if version == "2.0":
        side = math.isqrt(tiny.QUERIES)
        queries = queries + sincos(side, side)
    read = attention(queries, values + sincos(h, w), values, need_weights=False)[0]
    return norm(read, "ln_post") @ own["proj"]


def picture_embeds(version: tiny.Version, picture: PIL.Image.Image, most: int = 9) -> Tensor:
    """[slices * queries, HIDDEN] of one picture."""
    tower = timm_vit if version == "2.0" else navit
    tiles = cut(picture, tiny.RESOLUTION, most)
    return torch.cat([
        resample(version, tower(version, tile), tile.height // tiny.PATCH, tile.width // tiny.PATCH)
        for tile in tiles
    ])  # fmt: skip


# ------------------------------------------------------------------------------------------------- language


@cache
def language_model(version: tiny.Version) -> nn.Module:
    """transformers' causal model; the scalings of MiniCPM-2B are folded into a Llama's weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    settings = tiny.config(version)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    given = {name: settings[name] for name in (*names, "rms_norm_eps", "vocab_size", "max_position_embeddings")}
    given |= {"rope_parameters": {"rope_type": "default", "rope_theta": settings["rope_theta"]}}
    given |= {"tie_word_embeddings": False, "attn_implementation": "eager"}
    own = part(weights(version), "llm.")
    if version == "2.0":
        for name in own:
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                own[name] = own[name] * (tiny.SCALES["scale_depth"] / tiny.LAYERS**0.5)
        own["model.embed_tokens.weight"] = own["model.embed_tokens.weight"] * tiny.SCALES["scale_emb"]
        own["lm_head.weight"] = own["lm_head.weight"] / (tiny.HIDDEN / tiny.SCALES["dim_model_base"])
    model = Qwen2ForCausalLM(Qwen2Config(**given)) if version == "2.6" else LlamaForCausalLM(LlamaConfig(**given))
    model.load_state_dict(own)
    return model.eval()


class MiniCPMVReference(Reference):
    """The parts of one version put together. Pictures are cut here, from what they were before our processor."""

    def __init__(self, version: tiny.Version) -> None:
        self.version = version

    @torch.inference_mode()
    def embeds(self, sample: Sample) -> Tensor:
        """[slices of all media * queries, HIDDEN]."""
        return torch.cat([embed for media in sample.media for embed in self._item(media)])

    def _item(self, media: Media) -> list[Tensor]:
        if isinstance(media, Image):
            return [picture_embeds(self.version, PIL.Image.fromarray(media.pixels))]
        return [picture_embeds(self.version, PIL.Image.fromarray(frame), most=2) for frame in media.frames]

    @torch.inference_mode()
    def logits(self, sample: Sample) -> Tensor:
        """[num_tokens, vocab]."""
        model = language_model(self.version)
        embeds = model.get_input_embeddings()(torch.tensor([sample.prompt.token_ids])).clone()
        if sample.media:
            embeds[0, sample.is_embed] = self.embeds(sample)
        return model(inputs_embeds=embeds, use_cache=False).logits[0]
