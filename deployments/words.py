"""Where words begin and end: the patterns for whatever counts or compares the words of a text."""

from __future__ import annotations

import re
import unicodedata
from itertools import groupby


def _marks() -> str:
    """Ranges of a character class: vowel signs, accents and whatever else combines with the character before it."""
    codes = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)) in ("Mn", "Mc")]
    runs = ([code for _, code in run] for _, run in groupby(enumerate(codes), lambda place: place[1] - place[0]))
    return "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)


# Scripts without spaces between words count a word per character: a whole sentence would be one word, and never shared.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LETTER = rf"[^\W{UNSPACED}]"
# Marks are no part of \w; without them most Indic words would end at each vowel. Looking ahead spares other characters
# the search of a large class.
_MARK = rf"(?![\0-\u02ff{UNSPACED}])[{_marks()}]"
IN_WORD = rf"(?:{_LETTER}|{_MARK})"
WORD = re.compile(rf"{_LETTER}++(?:(?:{_MARK})++{_LETTER}*+)*+|[{UNSPACED}]")
BETWEEN_SPACES = re.compile(rf"[^\s{UNSPACED}]+|[{UNSPACED}]")
