"""Words of a text as stems, and how much of a question a text covers: what vectors blur, words keep apart."""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deployments.contracts import Vector
from deployments.errors import ConfigError
from deployments.normal_forms import normalized
from deployments.parsing import FUNCTION_WORDS
from deployments.words import BETWEEN_SPACES, IN_WORD, WORD

# (n,) uint32, sorted, each stem once: its CRC-32 stands for it. Two of a passage's few hundred stems share one with a
# probability of about 1 in 100,000.
Terms = NDArray[np.uint32]

# Any place but one between two characters of a word.
_EDGE = rf"(?:(?<!{IN_WORD})|(?!{IN_WORD}))"


def folded(text: str) -> str:
    """The text as words are compared: composed (NFKC) and casefolded."""
    return normalized("NFKC", text).casefold()


def count_words(text: str) -> int:
    """How many words a reader sees: what stands between spaces, and in scripts without them each character."""
    return sum(1 for _ in BETWEEN_SPACES.finditer(text))


def phrase_pattern(phrase: str) -> re.Pattern[str]:
    """Finds the phrase in folded texts: whole words, with any white space between them."""
    words = r"\s+".join(re.escape(word) for word in folded(phrase).split())
    return re.compile(f"{_EDGE}{words}{_EDGE}")


class Stemmer:
    """Reduces texts to the stems of their words by Snowball's rules for one language. Not thread-safe."""

    def __init__(self, language: str = "english") -> None:
        import Stemmer as snowball

        try:
            self._stem = snowball.Stemmer(language.lower()).stemWords
        except KeyError:
            known = ", ".join(snowball.algorithms())
            raise ConfigError(f"there is no stemmer for language {language!r}; use one of {known}") from None

    def terms(self, text: str) -> Terms:
        """The distinct stems of the text's words, whatever their case."""
        return self._terms(WORD.findall(folded(text)))

    def question_terms(self, question: str) -> Terms:
        """The stems of the words that say what is asked for: "what" and "did" rarely stand in an answer.

        Function words are known of English alone; of a question that has no others they are kept.
        """
        words = WORD.findall(folded(question))
        return self._terms([word for word in words if word not in FUNCTION_WORDS] or words)

    def _terms(self, words: list[str]) -> Terms:
        stems = self._stem(words)
        return np.unique(np.fromiter((_hash(stem) for stem in stems), dtype=np.uint32, count=len(stems)))


@lru_cache(65_536)
def _hash(stem: str) -> int:
    return zlib.crc32(stem.encode("utf-8", "surrogatepass"))


def coverages(question: Terms, terms: Terms, lengths: NDArray[np.int64], passages: NDArray[np.int64]) -> Vector:
    """How much of the question each sentence covers: (n,) float32 from 0 to 1, the share of its stems, rare ones first.

    `terms` holds the stems of n sentences one after the other, `lengths` (n,) how many each has, `passages` (n,) the
    number of the passage that it belongs to. A stem weighs by how rare it is among the passages, in BM25's form that
    is never negative (Lucene's BM25Similarity): log(1 + (N - n + 0.5) / (n + 0.5)).
    """
    covered = np.zeros(len(lengths), dtype=np.float32)
    if not len(question) or not len(terms):
        return covered
    sentences = np.repeat(np.arange(len(lengths)), lengths)
    places = np.minimum(np.searchsorted(question, terms), len(question) - 1)
    shared = question[places] == terms
    sentences, places = sentences[shared], places[shared]
    holders = np.unique(passages[sentences] * len(question) + places) % len(question)
    num_holders = np.bincount(holders, minlength=len(question))
    num_passages = len(np.unique(passages))
    weights = np.log1p((num_passages - num_holders + 0.5) / (num_holders + 0.5))
    covered += np.bincount(sentences, weights[places], minlength=len(lengths)).astype(np.float32)
    shares: Vector = np.minimum(covered / np.float32(weights.sum()), np.float32(1.0))
    return shares
