"""The rewrite stage: the queries that stand in for a question at search."""

from __future__ import annotations


def rewrite(question: str) -> tuple[str, ...]:
    """The queries to search with, the question itself first. One question is searched as it is asked."""
    return (question,)
