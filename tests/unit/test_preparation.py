"""What is embedded and indexed of a document: its passages, its sentences, its title, and what text search reads."""

from __future__ import annotations

import pytest

from deployments.contracts import Document
from deployments.ingestion.chunking import Chunk
from deployments.ingestion.preparation import Prepared


def prepared(title: str = "Tides", *texts: str) -> Prepared:
    texts = texts or ("The moon.", "The sea.", "The wind.")
    chunks = tuple(Chunk(text, 10 * at, 10 * at + len(text), 3) for at, text in enumerate(texts))
    return Prepared(Document("d", " ".join(texts), title), "", chunks, tuple(((0, len(text)),) for text in texts))


@pytest.mark.parametrize(
    ("num_neighbours", "searchable"),
    [
        (0, ["Tides\nThe moon.", "Tides\nThe sea.", "Tides\nThe wind."]),
        (1, ["Tides\nThe moon.\nThe sea.", "Tides\nThe moon.\nThe sea.\nThe wind.", "Tides\nThe sea.\nThe wind."]),
        (5, ["Tides\nThe moon.\nThe sea.\nThe wind."] * 3),
    ],
)
def test_text_search_reads_as_many_neighbours_of_a_passage_as_configured(
    num_neighbours: int, searchable: list[str]
) -> None:
    assert prepared().searchable(num_neighbours) == searchable


@pytest.mark.parametrize(("title", "has_title"), [("Tides", True), ("", False), (" \n", False)])
def test_only_a_title_that_says_something_is_embedded(title: str, has_title: bool) -> None:
    assert prepared(title).has_title is has_title
