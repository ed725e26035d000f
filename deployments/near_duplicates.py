"""Near duplicates: texts that repeat, but for a few words, what another one said."""

from __future__ import annotations

import re
from collections.abc import Set

from deployments.words import IN_WORD, WORD

_SHINGLE_WORDS = 3

# The words of ASCII text without WORD, in a sixth of its time: what is in no word becomes a blank.
_BLANKS = bytes(code if re.match(r"\w", chr(code), re.ASCII) else ord(" ") for code in range(128)).ljust(256)
# Begun only where a word begins, else every end of a long word would be read. Digits of any script go together.
_NUMBER = re.compile(rf"(?<!{IN_WORD})(?:(?!\d){IN_WORD})*+\d(?:\d|{IN_WORD})*+")


class NearDuplicates:
    """The texts taken so far, to which further ones are compared.

    A text is a near duplicate of one taken before if at least `similarity` of its three-word sequences, letter case
    and punctuation aside, stand there, too. A longer text that contains one taken before is none: it says more. Nor is
    a text with a number that the other lacks: tables, versions and yearly reports differ in little else.
    """

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._taken: list[tuple[str, Set[int]]] = []
        self._all_shingles: set[int] = set()

    def take(self, text: str) -> None:
        """Compare later texts to this one, too."""
        self._remember(text, _shingles(text))

    def take_if_new(self, text: str) -> bool:
        """Take `text` unless it is a near duplicate; return whether it was taken."""
        shingles = _shingles(text)
        if self._is_repeated(text, shingles):
            return False
        self._remember(text, shingles)
        return True

    def _remember(self, text: str, shingles: set[int]) -> None:
        self._taken.append((text, shingles))
        self._all_shingles |= shingles

    def _is_repeated(self, text: str, shingles: set[int]) -> bool:
        enough = self._similarity * len(shingles)
        # What all texts together do not hold, none of them holds: this spares comparing most texts one by one.
        if len(shingles & self._all_shingles) < enough:
            return False
        return any(
            len(shingles & theirs) >= enough and _numbers(text) <= _numbers(other) for other, theirs in self._taken
        )


def _shingles(text: str) -> set[int]:
    """Hashes of all sequences of three words; a shorter text is one sequence. Never empty."""
    words = _words(text.casefold()) or text.split()
    if len(words) < _SHINGLE_WORDS:
        return {hash(tuple(words))}
    return set(map(hash, zip(words, words[1:], words[2:], strict=False)))


def _words(text: str) -> list[str]:
    if text.isascii():
        return text.encode("ascii").translate(_BLANKS).decode("ascii").split()
    return WORD.findall(text)


def _numbers(text: str) -> set[str]:
    return set(_NUMBER.findall(text.casefold()))
