"""Two ways to ask a model: a checkpoint folder through transformers, or any server with the OpenAI chat API."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import httpx
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from tools.demo_model.items import Item
from tools.demo_model.sequences import NEXT_TURN, TO_ANSWER, TokenRow, opening
from tools.demo_model.windows import grouped_windows


class Backend(Protocol):
    """Answers items, in order."""

    def answers(self, items: Sequence[Item]) -> list[str]: ...


def prompt_row(tokenizer: Tokenizer, item: Item) -> TokenRow:
    """The item's chat up to where the model has to answer."""
    row = TokenRow(tokenizer)
    row.add_parts([opening(), *item.parts(), TO_ANSWER])
    for (_, answer), question in zip(item.history, item.turns()[1:], strict=True):
        row.add_text(answer + "<|im_end|>" + NEXT_TURN + question + TO_ANSWER)
    return row


class TransformersBackend:
    """Greedy decoding with the reference class in float32, positions by the original M-RoPE rule."""

    def __init__(self, folder: Path, batch_size: int = 32, max_tokens: int = 80) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.batch_size, self.max_tokens = batch_size, max_tokens
        self.stop = self.tokenizer.token_to_id("<|im_end|>")

    def answers(self, items: Sequence[Item]) -> list[str]:
        given = []
        for start in range(0, len(items), self.batch_size):
            rows = [prompt_row(self.tokenizer, item) for item in items[start : start + self.batch_size]]
            given += [self.tokenizer.decode(ids) for ids in self._greedy(rows)]
        return given

    def _embed(self, rows: Sequence[TokenRow], ids: Tensor) -> Tensor:
        """[B, L, hidden] with the media's features in place."""
        embeds: Tensor = self.model.model.language_model.embed_tokens(ids)
        media = [item for row in rows for item in row.media]
        if not media:
            return embeds
        pixels = torch.cat([torch.from_numpy(item.patches.rows) for item in media])
        grids = torch.tensor([item.patches.grid for item in media])
        with grouped_windows():
            features = self.model.model.visual(pixels, grid_thw=grids).pooler_output
        is_media = torch.zeros_like(ids, dtype=torch.bool)
        for pad in {item.pad for item in media}:
            is_media |= ids == self.tokenizer.token_to_id(pad)
        return embeds.masked_scatter(is_media[..., None], features)

    @torch.inference_mode()
    def _greedy(self, rows: Sequence[TokenRow]) -> list[list[int]]:
        """Token ids of the answers. Rows are padded on the left, so that all grow at the right edge."""
        length, count = max(len(row) for row in rows), len(rows)
        ids = torch.zeros(count, length, dtype=torch.long)
        positions = torch.zeros(3, count, length, dtype=torch.long)
        is_real = torch.zeros(count, length, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, length - len(row) :] = torch.tensor(row.ids)
            positions[:, number, length - len(row) :] = torch.tensor(row.positions).T
            is_real[number, length - len(row) :] = True
        visible = is_real[:, None, :] & torch.ones(length, length, dtype=torch.bool).tril()
        visible = (visible | torch.eye(length, dtype=torch.bool))[:, None]
        embeds, cache = self._embed(rows, ids), DynamicCache()
        following = torch.tensor([row.next_position for row in rows])
        answers: list[list[int]] = [[] for _ in rows]
        is_done = [False] * count
        for _ in range(self.max_tokens):
            hidden = self.model.model.language_model(
                inputs_embeds=embeds,
                position_ids=positions,
                attention_mask={"full_attention": visible},
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            chosen = self.model.lm_head(hidden).argmax(-1)
            for number, token in enumerate(chosen.tolist()):
                is_done[number] = is_done[number] or token == self.stop
                if not is_done[number]:
                    answers[number].append(token)
            if all(is_done):
                break
            embeds = self.model.model.language_model.embed_tokens(chosen[:, None])
            positions = following[None, :, None].expand(3, -1, -1)
            following = following + 1
            is_real = torch.cat([is_real, torch.ones(count, 1, dtype=torch.bool)], dim=1)
            visible = is_real[:, None, None, :]
        return answers


class ServerBackend:
    """A running server, asked concurrently at temperature 0."""

    def __init__(self, base_url: str, model: str, concurrency: int = 8, max_tokens: int = 80) -> None:
        self.base_url, self.model = base_url.rstrip("/"), model
        self.concurrency, self.max_tokens = concurrency, max_tokens

    def answers(self, items: Sequence[Item]) -> list[str]:
        limits = httpx.Limits(max_connections=self.concurrency)
        with httpx.Client(timeout=300, limits=limits) as client, ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(lambda item: self._ask(client, item), items))

    def _ask(self, client: httpx.Client, item: Item) -> str:
        body = {
            "model": self.model,
            "messages": item.messages(),
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        response = client.post(f"{self.base_url}/chat/completions", json=body)
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])
