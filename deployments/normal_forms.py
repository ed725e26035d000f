"""Unicode's normal forms of texts that anybody may have written, in linear time."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Literal

# No language has more combining marks in a row (UAX #15, Stream-Safe Text Format), and putting n of them into their
# order takes n * n steps.
_MOST_MARKS = 30
# Beyond the last block with scripts and their marks there are ideographs and tags alone.
_LAST_MARK = 0x20000


def normalized(form: Literal["NFC", "NFKC"], text: str) -> str:
    """The text in the normal form; of more than 30 combining marks in a row the first 30 are left."""
    # Nearly every text is. Where marks stand out of order the answer comes at once.
    if unicodedata.is_normalized(form, text):
        return text
    return unicodedata.normalize(form, _too_many_marks().sub(r"\1", text))


@cache
def _too_many_marks() -> re.Pattern[str]:
    marks = "".join(chr(code) for code in range(0x300, _LAST_MARK) if unicodedata.combining(chr(code)))
    return re.compile(rf"([{marks}]{{{_MOST_MARKS}}})[{marks}]+")
