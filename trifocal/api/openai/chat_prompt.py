"""The prompt of a request body with messages, the same for answering and for tokenizing."""

from __future__ import annotations

from trifocal.api.openai.schemas import MessagesBody
from trifocal.prompt.builder import PromptBuilder
from trifocal.types import Prompt


async def build_chat_prompt(builder: PromptBuilder, body: MessagesBody, cache_salt: str | None = None) -> Prompt:
    """Fetch, render and tokenize `body.messages`. Raises `RequestError`."""
    assert body.messages is not None
    continues = bool(body.continue_final_message)
    starts_turn = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    return await builder.chat(
        body.messages,
        add_generation_prompt=starts_turn,
        continue_final_message=continues,
        chat_template_kwargs=body.chat_template_kwargs,
        mm_processor_kwargs=body.mm_processor_kwargs,
        media_io_kwargs=body.media_io_kwargs,
        cache_salt=cache_salt,
    )
