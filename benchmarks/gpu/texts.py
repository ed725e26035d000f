"""The texts that are embedded, ranked and asked: SciFact's own, or made-up ones that are as long."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiment import ExperimentError, read_queries
from benchmarks.gpu.lengths import DOCUMENT_QUANTILES, QUESTION_QUANTILES, draw_lengths

MADE_UP = "made up, as long as SciFact's"
NUM_WORDS = 20_000
TITLE_WORDS = 12
SENTENCE_WORDS = 20
_ONSETS = ("b", "c", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "st", "tr", "pl", "gr")
_VOWELS = ("a", "e", "i", "o", "u", "ia", "eo")


@dataclass(frozen=True, slots=True)
class Document:
    """A document in BEIR's layout."""

    id: str
    title: str
    text: str

    @property
    def whole(self) -> str:
        """What an embedder gets of it."""
        return f"{self.title}\n{self.text}"

    def to_json(self) -> dict[str, str]:
        return {"_id": self.id, "title": self.title, "text": self.text}


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents and questions about them, and where both are from."""

    documents: tuple[Document, ...]
    questions: tuple[str, ...]
    source: str


def load_corpus(corpus: Path, num_documents: int, num_questions: int, seed: int = 0) -> Corpus:
    """Draw from a BEIR corpus, its `queries.jsonl` beside it, or make texts up where there is no such file.

    Where there are fewer questions than asked for, the titles of the documents follow: in SciFact these are statements
    like its claims. Raises ExperimentError for a file that is not in this layout.
    """
    rng = np.random.default_rng(seed)
    if not corpus.is_file():
        return _make_up(num_documents, num_questions, rng)
    documents = _read_documents(corpus)
    queries = list(read_queries(corpus.with_name("queries.jsonl")).values())
    chosen = tuple(documents[index] for index in rng.permutation(len(documents))[:num_documents])
    shuffled = [queries[index] for index in rng.permutation(len(queries))]
    titles = [document.title for document in chosen if document.title]
    # White space as raglane passes a question on, so that the prompt can be made again from it.
    questions = [" ".join(question.split()) for question in (*shuffled, *titles)]
    return Corpus(chosen, tuple(questions[:num_questions]), corpus.name)


def _read_documents(path: Path) -> list[Document]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
        return [Document(str(record["_id"]), str(record["title"]), str(record["text"])) for record in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"{path} is no corpus of JSON lines with `_id`, `title` and `text`: {error!r}") from error


def _make_up(num_documents: int, num_questions: int, rng: np.random.Generator) -> Corpus:
    writer = _Writer(rng)
    lengths = draw_lengths(DOCUMENT_QUANTILES, num_documents, rng)
    documents = tuple(writer.document(f"made-up-{number}", int(length)) for number, length in enumerate(lengths))
    lengths = draw_lengths(QUESTION_QUANTILES, num_questions, rng)
    return Corpus(documents, tuple(writer.sentence(int(length) - 3) for length in lengths), MADE_UP)


class _Writer:
    """Writes words that nobody knows as often as a language uses its own: the n-th one a share of 1/n (Zipf)."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._words = _words(rng)
        shares = 1.0 / np.arange(1, len(self._words) + 1)
        self._cumulative = np.cumsum(shares / shares.sum())

    def document(self, document_id: str, num_tokens: int) -> Document:
        """About `num_tokens` long with the special tokens, where a word and a full stop are one token each."""
        title = self.sentence(TITLE_WORDS)
        left = max(1, num_tokens - TITLE_WORDS - 3)
        sentences = []
        while left > 0:
            sentences.append(self.sentence(min(left, SENTENCE_WORDS)))
            left -= SENTENCE_WORDS + 1
        return Document(document_id, title, " ".join(sentences))

    def sentence(self, num_words: int) -> str:
        ranks = np.searchsorted(self._cumulative, self._rng.random(max(1, num_words)))
        words = [self._words[min(rank, len(self._words) - 1)] for rank in ranks.tolist()]
        return f"{' '.join(words).capitalize()}."


def _words(rng: np.random.Generator) -> list[str]:
    syllables = [f"{onset}{vowel}" for onset in _ONSETS for vowel in _VOWELS]
    words: dict[str, None] = {}
    while len(words) < NUM_WORDS:
        chosen = rng.integers(0, len(syllables), 1 + int(rng.integers(0, 4))).tolist()
        words["".join(syllables[index] for index in chosen)] = None
    return list(words)
