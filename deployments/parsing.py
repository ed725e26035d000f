"""The parse stage: a raw question becomes a clean one, or a clear refusal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from deployments.errors import InvalidInput

QUESTION_MAX_CHARS = 8192


def parse_question(text: str, max_chars: int = QUESTION_MAX_CHARS) -> str:
    """Return the question in NFC with control characters gone and white space folded.

    Raises InvalidInput for a question that is empty or longer than `max_chars`.
    """
    visible = "".join(" " if unicodedata.category(c) == "Cc" else c for c in unicodedata.normalize("NFC", text))
    question = " ".join(visible.split())
    if not question:
        raise InvalidInput("the question is empty; send some text")
    if len(question) > max_chars:
        raise InvalidInput(f"the question has {len(question)} characters; shorten it to {max_chars}")
    return question


def last_question(messages: Sequence[Mapping[str, str]]) -> str:
    """The text of the last user message; raises InvalidInput where there is none."""
    for message in reversed(messages):
        if message.get("role") == "user":
            return message.get("content", "")
    raise InvalidInput("messages hold no message with role 'user'; add the question as one")
