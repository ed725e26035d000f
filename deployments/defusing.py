"""Defusing: quoted text that could pass for a part of the prompt itself is rewritten so that it can't.

Two things in a text are dangerous: the tags that fence a source, with which it could end its own quotation or forge
another one, and the control tokens of chat templates, which some tokenizers turn into the real thing wherever they
stand. Both are still readable afterwards: `</source>` becomes `‹/source>`, `<|im_start|>` becomes `‹|im_start|›`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_INVISIBLE = "\u200b"
_GAP = rf"[\s{_INVISIBLE}]*+"

# Names in angle brackets, one pair or two, that are control tokens of some model family; `<|...|>` is one by its shape.
_ANGLE_NAMES = (
    *("s", "bos", "eos", "pad", "unk", "sop", "eop", "bos_token", "eos_token", "sys"),
    *("start_of_turn", "end_of_turn", "think", "tool_call", "tool_response"),
)
_SQUARE_NAMES = (
    *("inst", "system_prompt", "available_tools", "tool_calls", "tool_results", "tool_content", "args", "gmask"),
)

# What looks like these characters but is not folded into them by Unicode's compatibility forms.
_LOOKALIKES = {
    "<": "〈〈⟨❮❰˂ᐸ≺",
    ">": "〉〉⟩❯❱˃ᐳ≻",
    "|": "∣ǀ│┃❘⎪￨",
    "/": "⁄∕⧸╱",
    "s": "ѕЅꜱ",
    "o": "оОοΟօᴏ",
    "u": "սυᴜ",
    "r": "гʀᴦ",
    "c": "сСϲϹᴄ",
    "e": "еЕΕᴇ℮ҽ",
}
_COMPATIBLE = (
    *((0xA0, 0x2FF), (0x1D00, 0x1DBF), (0x2000, 0x214F), (0x24B6, 0x24E9), (0xFE50, 0xFFEF), (0x1D400, 0x1D7FF)),
    (0x1F130, 0x1F149),
)
_FORMATTING = (
    *((0x00, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x34F, 0x34F), (0x600, 0x70F), (0x115F, 0x1160), (0x17B4, 0x17B5)),
    *((0x180B, 0x180F), (0x200B, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0)),
    *((0xFFF9, 0xFFFB), (0x1D173, 0x1D17A), (0xE0000, 0xE01EF)),
)
_DRAWN_AS_NOTHING = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0")

_NEUTRAL = {"<": "‹", ">": "›", "[": "(", "]": ")"}


def defuse(text: str) -> str:
    """`text` with every fence tag and control token made harmless; all other text stays as it is.

    Spelling with other letters that look the same, with white space, or with invisible characters does not help.
    Defusing what is defused changes nothing.
    """
    if not _OPENING.search(text):
        return text
    # One character for one, so that a place in the folded text is the same place in the text.
    folded = _FOLDABLE.sub(lambda match: _FOLDED.get(match.group(), match.group()), text)
    pieces: list[str] = []
    end = 0
    for match in _DANGEROUS.finditer(folded):
        pieces.append(text[end : match.start()])
        end = match.end()
        shown = zip(match.group(), text[match.start() : end], strict=True)
        pieces.extend(_NEUTRAL.get(plain, original) for plain, original in shown)
    return "".join(pieces) + text[end:]


def _folding() -> dict[str, str]:
    """Each character that can pass for an ASCII one, mapped to that; each that can't be seen, to `_INVISIBLE`."""
    table: dict[str, str] = {}
    for code in _codes(_COMPATIBLE):
        plain = unicodedata.normalize("NFKC", chr(code))
        if len(plain) == 1 and plain.isascii():
            table[chr(code)] = plain
    for code in _codes(_FORMATTING):
        character = chr(code)
        unseen = unicodedata.category(character) in ("Cc", "Cf") and not character.isspace()
        if unseen or character in _DRAWN_AS_NOTHING or 0xFE00 <= code <= 0xFE0F or code >= 0xE0100:
            table[character] = _INVISIBLE
    for plain, lookalikes in _LOOKALIKES.items():
        table.update(dict.fromkeys(lookalikes, plain))
    return table


def _codes(ranges: tuple[tuple[int, int], ...]) -> Iterator[int]:
    for first, last in ranges:
        yield from range(first, last + 1)


def _spelled(*names: str) -> str:
    """A pattern for any of the names, with invisible characters between their letters."""
    return "(?:" + "|".join(f"{_INVISIBLE}*".join(map(re.escape, name)) for name in names) + ")"


_FOLDED = _folding()
_FIRST_PLANE = "".join(character for character in _FOLDED if character <= "\uffff")
# The other planes as ranges: a class that names thousands of their characters one by one is slow.
_FOLDABLE = re.compile(f"[{re.escape(_FIRST_PLANE)}\U0001d173-\U0001d7ff\U0001f130-\U0001f149\U000e0000-\U000e01ef]")
_OPENINGS = "<[" + "".join(character for character, plain in _FOLDED.items() if plain in "<[")
_OPENING = re.compile(f"[{re.escape(_OPENINGS)}]")
_DANGEROUS = re.compile(
    "|".join(
        (
            rf"<{_GAP}(?:/{_GAP})?{_spelled('source')}(?!\w)",
            rf"<{_GAP}\|[^<>\n]{{1,64}}?\|{_GAP}>",
            # Newer templates have a bar on one side alone: <|turn> … <turn|>.
            rf"<{_GAP}\|{_GAP}[\w{_INVISIBLE}]{{1,64}}{_GAP}>",
            rf"<{_GAP}[\w{_INVISIBLE}]{{1,64}}{_GAP}\|{_GAP}>",
            rf"<{_GAP}(?:<{_GAP})?(?:/{_GAP})?{_spelled(*_ANGLE_NAMES)}{_GAP}>(?:{_GAP}>)?",
            rf"\[{_GAP}(?:/{_GAP})?{_spelled(*_SQUARE_NAMES)}{_GAP}\]",
        )
    ),
    re.IGNORECASE,
)
