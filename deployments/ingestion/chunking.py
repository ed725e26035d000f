"""Chunking: documents cut at semantic boundaries into passages that fit the embedder's token budget."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from pydantic import Field, model_validator

from deployments.contracts import Document
from deployments.errors import ConfigError, InvalidInput
from deployments.ingestion.markup import MARKDOWN_SUFFIXES
from deployments.section import Section

_TITLE_SHARE = 4  # a title takes at most one part in so many of the budget
_LONG_LINE_CHUNKS = 8


class ChunkingConfig(Section):
    """How documents are cut into passages."""

    chunk_tokens: int = Field(
        256,
        ge=32,
        le=32_768,
        description="Tokens of a passage as it is embedded: title, text and special tokens together. "
        "Not more than the embedding model takes.",
    )
    overlap_tokens: int = Field(
        0, ge=0, description="Tokens that neighbouring passages may share. At most half of chunk_tokens."
    )
    max_chars_per_token: int = Field(
        8,
        ge=4,
        le=256,
        description="A passage is also cut at chunk_tokens times this many characters, because a tokenizer may count "
        "thousands of characters without a space as one unknown token.",
    )

    @model_validator(mode="after")
    def _overlap_leaves_room(self) -> Self:
        if self.overlap_tokens > self.chunk_tokens // 2:
            raise ValueError(
                f"overlap_tokens {self.overlap_tokens} is more than half of chunk_tokens {self.chunk_tokens}"
            )
        return self


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: `text == document.text[start:end]`. `num_tokens` counts `text` without special tokens."""

    text: str
    start: int
    end: int
    num_tokens: int


class Chunker:
    """Cuts documents so that every character that is not whitespace is in a chunk and no chunk is over the budget.

    A chunk is meant to be embedded as `heading(title) + chunk.text`; that, with special tokens, is what is counted.
    `tokenizer_file` is the `tokenizer.json` of the embedding model. Needs the CPU, so keep it off event loops.
    """

    def __init__(self, config: ChunkingConfig, tokenizer_file: str | Path) -> None:
        from semantic_text_splitter import MarkdownSplitter, TextSplitter
        from tokenizers import Tokenizer

        if not Path(tokenizer_file).is_file():
            raise ConfigError(f"there is no tokenizer file {str(tokenizer_file)!r}")
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._markdown_splitter, self._text_splitter = MarkdownSplitter, TextSplitter
        self._config = config
        self._max_chars = config.chunk_tokens * config.max_chars_per_token
        self._long_line_chars = self._max_chars * _LONG_LINE_CHUNKS
        self._long_line = re.compile(rf"^[^\n]{{{self._long_line_chars},}}", re.MULTILINE)

    def split(self, document: Document) -> list[Chunk]:
        """Return the chunks in the order of the text, none for whitespace. Raises InvalidInput for lone surrogates."""
        _require_encodable(document)
        heading = self.heading(document.title)
        heading_tokens = self._num_tokens(heading)
        capacity = self._config.chunk_tokens - heading_tokens

        def size(text: str) -> int:
            # Counting what can't fit anyway would make long stretches without a boundary take quadratic time.
            if len(text) > self._max_chars:
                return capacity + len(text)
            return self._num_tokens(heading + text) - heading_tokens

        is_markdown = PurePosixPath(document.source).suffix.lower() in MARKDOWN_SUFFIXES
        splitter_class = self._markdown_splitter if is_markdown else self._text_splitter
        splitter = splitter_class.from_callback(size, capacity, self._config.overlap_tokens)
        spans = [
            (section_start + start, text)
            for section_start, section in self._sections(document.text)
            for start, text in splitter.chunk_indices(section)
            if not text.isspace()
        ]
        counts = self._count_all([heading + text for _, text in spans])
        return [
            Chunk(text, start, start + len(text), count - heading_tokens)
            for (start, text), count in zip(spans, counts, strict=True)
        ]

    def heading(self, title: str) -> str:
        """Return what a passage is embedded with: the title, cut to a quarter of the budget, and a newline."""
        title = " ".join(title.split())[: self._max_chars // _TITLE_SHARE]
        if not title:
            return ""
        limit = self._config.chunk_tokens // _TITLE_SHARE
        offsets = self._tokenizer.encode(title, add_special_tokens=False).offsets
        if len(offsets) > limit:
            title = title[: offsets[limit - 1][1]].rstrip()
        return f"{title}\n"

    def _sections(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield `text` with its offset, cut only inside lines so long that the splitter's quadratic time would hurt."""
        start = 0
        for line in self._long_line.finditer(text):
            begin, end = line.span()
            while end - begin > self._long_line_chars:
                begin = text.rfind(" ", begin, begin + self._long_line_chars) + 1 or begin + self._long_line_chars
                yield start, text[start:begin]
                start = begin
        yield start, text[start:]

    def _num_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def _count_all(self, texts: list[str]) -> list[int]:
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(texts)]


def _require_encodable(document: Document) -> None:
    try:
        document.title.encode()
        document.text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the title or text has half of a surrogate pair at character {error.start}") from None
