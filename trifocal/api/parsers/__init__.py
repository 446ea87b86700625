"""Parsers between an answer and the API that writes it down: they find reasoning and tool calls in its text.

None is here yet. `base` says what one is.
"""
