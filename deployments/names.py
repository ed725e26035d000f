"""Names of people, places and things, found in a text by its capitals, and the words between them.

The rules know English.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from msgspec import Struct

from deployments.parsing import AUXILIARIES, FUNCTION_WORDS, word_set

WORD = re.compile(r"[^\W_](?:[\w'’&./-]*\w)?")
YEAR = re.compile(r"\b(?:1[0-9]|20)[0-9]{2}\b")

_ABBREVIATIONS = word_set("jr sr st dr mr mrs ms prof mt ft gen sgt capt rev hon vs no inc ltd co corp vol")
_SENTENCE_OPENERS = FUNCTION_WORDS | word_set(
    "name tell list give compare explain describe define find show besides according hello thanks"
)
_DATE_WORDS = word_set("""
    january february march april may june july august september october november december
    monday tuesday wednesday thursday friday saturday sunday
""")
# Lower-case words inside a name; the prepositions only before "the", as in "Bridge on the River Kwai".
_PARTICLES = word_set("of the de la le du des von van der den di da del della bin ibn ben al el ap y")
_PREPOSITIONS_IN_NAMES = word_set("to from on of")
_TIME_PREPOSITIONS = word_set("in since by during of from until till before after around")
_NUMBER = re.compile(r"[0-9]{1,4}")
_DEMONYM = re.compile(r"(?:ian|ean|can|ish|ese|nch|lsh)$")


@dataclass(frozen=True, slots=True)
class Mention:
    """A name in a text: `text` is what stands from `start` to `end`, without a possessive's ending."""

    text: str
    start: int
    end: int


def names(text: str) -> list[Mention]:
    """The capitalised names of a text in their order: "Big Stone Gap", "the River Kwai" without "the", "Paris".

    A capitalised word that opens a sentence is no name on its own. Empty where capitals mean nothing: in a title, or in
    upper case.
    """
    words = split_words(text)
    if _capitals_mean_nothing(words):
        return []
    found: list[Mention] = []
    first = 0
    while first < len(words):
        if not words[first].is_capitalised:
            first += 1
            continue
        last = _end_of_name(words, first)
        if _is_name(words, first, last):
            found.append(_mention(words, first, last, text))
        first = last + 1
    return found


def content_words(text: str) -> list[str]:
    """The words that say what the text is about, in their order, without punctuation."""
    return [word for match in WORD.finditer(text) if word_key(word := match[0]) not in FUNCTION_WORDS]


class Word(Struct, frozen=True):
    """`key` is `word_key` of the text; `breaks` tells whether punctuation parts the word from the one before it."""

    text: str
    key: str
    start: int
    end: int
    breaks: bool
    opens_sentence: bool

    @property
    def is_possessive(self) -> bool:
        return self.text.endswith(("'s", "’s"))

    @property
    def is_capitalised(self) -> bool:
        if self.key == "i" or (self.opens_sentence and self.key in _SENTENCE_OPENERS):
            return False
        return any(character.isupper() for character in self.text)

    @property
    def has_capitals_inside(self) -> bool:
        """Tell whether the word looks like a name even where every word is capitalised: "BERT", "iPhone", "H5"."""
        return any(character.isupper() or character.isdigit() for character in self.text[1:])


def word_key(word: str) -> str:
    """The word in lower case, without a possessive's or a verb's ending: "Who's" → "who"."""
    lower = word.casefold().replace("’", "'")
    return lower if lower in AUXILIARIES else lower.partition("'")[0]


def split_words(text: str) -> list[Word]:
    """The words of a text in their order."""
    words: list[Word] = []
    for match in WORD.finditer(text):
        gap = text[words[-1].end if words else 0 : match.start()]
        if words and "." in gap and _is_abbreviation(words[-1].text):
            gap = gap.replace(".", "", 1)
        opens_sentence = not words or any(mark in gap for mark in ".?!:")
        breaks = gap.strip() not in ("", "&", "'", "’")
        words.append(Word(match[0], word_key(match[0]), *match.span(), breaks, opens_sentence))
    return words


def _is_abbreviation(word: str) -> bool:
    return len(word) == 1 or "." in word or word.casefold() in _ABBREVIATIONS


def _capitals_mean_nothing(words: list[Word]) -> bool:
    inner = [word for word in words if not word.opens_sentence and word.key in FUNCTION_WORDS and word.key != "i"]
    if len(inner) > 2:
        return 2 * sum(word.text[0].isupper() for word in inner) > len(inner)
    return len(words) > 3 and all(word.text.isupper() for word in words)


def _end_of_name(words: list[Word], first: int) -> int:
    """Index of the name's last word. Particles and numbers go on with a name; only numbers may end it."""
    last = first
    while last + 1 < len(words) and not words[last + 1].breaks:
        following = words[last + 1 : last + 4]
        if following[0].is_capitalised or _NUMBER.fullmatch(following[0].text):
            last += 1
            continue
        particles = 1 if following[0].text in _PARTICLES else 0
        if len(following) > 1 and following[1].text == "the" and following[0].text in _PREPOSITIONS_IN_NAMES:
            particles = 2
        if not particles or len(following) <= particles or not following[particles].is_capitalised:
            break
        if any(word.breaks for word in following[: particles + 1]):
            break
        last += particles + 1
    return last


def _is_name(words: list[Word], first: int, last: int) -> bool:
    run = words[first : last + 1]
    if all(word.key in _DATE_WORDS or word.text.isdigit() for word in run):
        return False
    qualifies_noun = last + 1 < len(words) and not words[last + 1].breaks and words[last + 1].key not in FUNCTION_WORDS
    if qualifies_noun and _DEMONYM.search(run[-1].key):
        return False
    if len(run) > 1 or run[0].has_capitals_inside:
        return True
    return run[0].is_possessive or not run[0].opens_sentence


def _mention(words: list[Word], first: int, last: int, text: str) -> Mention:
    end = words[last].end - (2 if words[last].is_possessive else 0)
    # The year of an event is part of its name, the year in "In 1990 Ann Smith ..." is not.
    has_year = first > 0 and not words[first].breaks and YEAR.fullmatch(words[first - 1].text)
    if has_year and not (first > 1 and words[first - 2].key in _TIME_PREPOSITIONS):
        first -= 1
    start = words[first].start
    return Mention(text[start:end], start, end)
