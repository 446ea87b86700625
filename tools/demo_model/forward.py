"""One forward pass of the reference model over a packed batch."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from tools.demo_model.batches import Batch


def hidden_states(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """[B, L, hidden] after the last norm, and the vision features [media tokens, hidden].

    Goes through the reference's own towers, with positions and mask given from outside: the reference's
    positions after a clip differ from the original rule, and its mask knows no branches.
    """
    embeds = model.model.language_model.embed_tokens(batch.ids)
    features = embeds.new_zeros(0, embeds.shape[-1])
    if len(batch.grids):
        features = model.model.visual(batch.pixels, grid_thw=batch.grids).pooler_output
        embeds = embeds.masked_scatter(batch.is_media[..., None], features[batch.sources].to(embeds.dtype))
    output = model.model.language_model(
        inputs_embeds=embeds,
        position_ids=batch.positions,
        attention_mask={"full_attention": batch.visible},
        use_cache=False,
    )
    return output.last_hidden_state, features


def answer_logits(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, vocab] and labels [N] at the N supervised tokens, in row order; the vision features."""
    states, features = hidden_states(model, batch)
    hidden = states[:, :-1]
    labels = batch.labels[:, 1:]
    chosen = labels >= 0
    return model.lm_head(hidden[chosen]).float(), labels[chosen], features


@torch.no_grad()
def exact_answers(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> list[bool]:
    """Per answer: whether greedy decoding would give it token for token.

    Teacher forcing decides that in one pass: greedy follows the answer exactly when every argmax does.
    """
    logits, labels, _ = answer_logits(model, batch)
    is_right = logits.argmax(-1) == labels
    rights, offset = [], 0
    for _, begin, end in batch.answers:
        rights.append(bool(is_right[offset : offset + end - begin].all()))
        offset += end - begin
    return rights
