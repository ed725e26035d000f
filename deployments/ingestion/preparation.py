"""Preparation: a document becomes chunks and sentences, or a rejection that says why. Needs the CPU, not the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from deployments.contracts import Document, RejectedDocument
from deployments.errors import InvalidInput
from deployments.ingestion.chunking import Chunk, Chunker, ChunkingConfig
from deployments.ingestion.sentences import split_sentences

# These stand in the row of every chunk, so a long document would multiply them beyond any memory.
MAX_ID_CHARS = 512
MAX_TITLE_CHARS = 2048
MAX_SOURCE_CHARS = 4096
MAX_METADATA_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document cut up: its chunks, the sentence spans of each chunk, and what stands before each when embedded."""

    document: Document
    heading: str
    chunks: tuple[Chunk, ...]
    spans: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def has_title(self) -> bool:
        """Whether there is a title to embed."""
        return bool(self.document.title.strip())

    def passages(self) -> list[str]:
        """What is embedded for each chunk: the title gives a chunk its topic."""
        return [self.heading + chunk.text for chunk in self.chunks]

    def sentences(self) -> list[str]:
        """Every sentence of every chunk, in order."""
        pairs = zip(self.chunks, self.spans, strict=True)
        return [chunk.text[start:end] for chunk, spans in pairs for start, end in spans]

    def searchable(self, num_neighbours: int) -> list[str]:
        """What text search reads of each chunk: the title, the chunk, and as many chunks before and after it."""
        texts = [chunk.text for chunk in self.chunks]
        return [
            "\n".join([self.document.title, *texts[max(0, at - num_neighbours) : at + num_neighbours + 1]])
            for at in range(len(texts))
        ]


class Preparer:
    """Cuts documents into chunks and sentences. Synchronous; meant for a thread."""

    def __init__(self, config: ChunkingConfig, max_sentence_chars: int, tokenizer: str) -> None:
        self._chunker = Chunker(config, tokenizer)
        self._max_sentence_chars = max_sentence_chars

    def prepare(self, documents: Sequence[Document]) -> list[Prepared | RejectedDocument]:
        """One result per document, in order."""
        return [self._prepare_one(document) for document in documents]

    def _prepare_one(self, document: Document) -> Prepared | RejectedDocument:
        if not document.id or len(document.id) > MAX_ID_CHARS:
            return RejectedDocument(document.id, f"the id is empty or longer than {MAX_ID_CHARS} characters")
        if not document.text.strip():
            return RejectedDocument(document.id, "the text is empty")
        try:
            _check_storable(document)
            chunks = tuple(self._chunker.split(document))
        except InvalidInput as error:
            return RejectedDocument(document.id, error.message)
        spans = tuple(tuple(split_sentences(chunk.text, self._max_sentence_chars)) for chunk in chunks)
        return Prepared(document, self._chunker.heading(document.title), chunks, spans)


def _check_storable(document: Document) -> None:
    """Raise InvalidInput for what the table or its readers could not take."""
    if len(document.title) > MAX_TITLE_CHARS:
        raise InvalidInput(f"the title is longer than {MAX_TITLE_CHARS} characters")
    if len(document.source) > MAX_SOURCE_CHARS:
        raise InvalidInput(f"the source is longer than {MAX_SOURCE_CHARS} characters")
    if not all(isinstance(value, str | int | float | bool | None) for value in document.metadata.values()):
        raise InvalidInput("a metadata value is not a string, a number, a boolean or null")
    try:
        json.dumps(dict(document.metadata), ensure_ascii=False, allow_nan=False).encode()
        f"{document.id}{document.source}".encode()
    except UnicodeEncodeError:
        raise InvalidInput("the id, the source or the metadata have half of a surrogate pair") from None
    except (TypeError, ValueError):
        raise InvalidInput("a metadata value is not a finite number") from None
    if len(json.dumps(dict(document.metadata))) > MAX_METADATA_BYTES:
        raise InvalidInput(f"the metadata is larger than {MAX_METADATA_BYTES} bytes of ASCII JSON")
