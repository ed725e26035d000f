"""The prompt that raglane made for an answer, made again from what the answer tells of its sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deployments.contracts import Passage, Source
from deployments.prompts import PromptsConfig, prompt_messages


def rebuild(question: str, sources: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The chat messages of a question and its `sources` event, where the server's prompts are the default ones.

    That they are the same shows in their number of tokens, which the answer has in `usage`.
    """
    numbered = [
        Source(
            number=int(source["number"]),
            passage=Passage(
                id=str(source["passage_id"]),
                document_id=str(source["document_id"]),
                text=str(source["text"]),
                score=float(source["score"]),
                title=str(source["title"]),
            ),
        )
        for source in sources
    ]
    return [dict(message) for message in prompt_messages(question, numbered, PromptsConfig())]
