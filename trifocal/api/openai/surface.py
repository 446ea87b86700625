"""OpenAI's surface: its routes and its form of errors."""

from __future__ import annotations

from trifocal.api.openai import chat, completions, models, tokens
from trifocal.api.openai.errors import error_form
from trifocal.api.surface import Surface

OPENAI = Surface([chat.router, completions.router, tokens.router, models.router], error_form)
