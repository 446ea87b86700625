"""transformers' causal language models; InternLM2 and MiniCPM, which it has not, as the Llamas that they equal."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from tests import tiny_text as tiny
from tests.oracle import Reference, Sample

_AS_LLAMA = ("InternLM2ForCausalLM", "MiniCPMForCausalLM")


class TextReference(Reference):
    """The class that config.json of a folder names, with the weights of `tiny.tensors`, eager attention."""

    def __init__(self, folder: Path, text: tiny.Text) -> None:
        import transformers

        settings = json.loads((folder / "config.json").read_text())
        (name,) = settings.pop("architectures")
        del settings["model_type"]
        cls = getattr(transformers, "LlamaForCausalLM" if name in _AS_LLAMA else name)
        self.model = cls(cls.config_class(**settings, attn_implementation="eager")).eval()
        weights = tiny.tensors(text, tied=settings["tie_word_embeddings"])
        if text == "minicpm":
            weights = _unscaled(weights)
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        assert not unexpected and missing == ["lm_head.weight"] * settings["tie_word_embeddings"], (missing, unexpected)
        self.model.tie_weights()

    def embeds(self, sample: Sample) -> Tensor:
        """There are no media."""
        raise NotImplementedError

    @torch.inference_mode()
    def logits(self, sample: Sample) -> Tensor:
        """[num_tokens, vocab]."""
        return self.model(input_ids=torch.tensor([sample.prompt.token_ids]), use_cache=False).logits[0]


def _unscaled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """MiniCPM's with its scalings multiplied in: a Llama's."""
    scales = tiny.SCALES
    residual = scales["scale_depth"] / tiny.LAYERS**0.5
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = weights[name] * residual
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] * scales["scale_emb"]
    weights["lm_head.weight"] = weights["lm_head.weight"] / (tiny.HIDDEN / scales["dim_model_base"])
    return weights
