"""Sentence boundaries: the library `sentencex` inside a block, and our own rules for where blocks end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from deployments.words import BETWEEN_SPACES

Span = tuple[int, int]

# Possessive: its parts match the same characters, and a backtick behind them would have every share of them tried.
_FENCE = re.compile(r"\s*+(`{3,}+|~{3,}+)[ \t]*+([^\s`]*+)[^`]*+$")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s")
_OPENS_BLOCK = re.compile(r"\s*(?:[-*+•]\s|\d{1,2}[.)]\s|\|)")
_ALPHANUMERIC = re.compile(r"[^\W_]")
_LETTER = re.compile(r"[^\W\d_]")

_MIN_WORDS = 3
_QUESTION_MARKS = "?？؟"

# Sentencex ends sentences inside inline code and addresses, and sees none between `<` and `>` ("p < 0.05 ... 5 > 3").
_CODE_OR_ADDRESS = re.compile(r"`[^`]+`|https?://\S*\w|<!--")
_ANGLE_BRACKETS = str.maketrans("<>", "--")

# Abbreviations that sentencex does not know; before a number, a bracket or a lower-case word they end no sentence.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[])(?:figs?|eqs?|eqns?|refs?|secs?|tabs?|vols?|nos?|chap|approx|ca|cf|resp|spp?|ssp|subsp|var|et|al|syn"
    r"|supp?l)\.$",
    re.IGNORECASE,
)
# A genus cut to its first letters ("An. gambiae", "U. minutissima") is followed by a lower-case word.
_CUT_GENUS = re.compile(r"(?:^|\W)[A-Z][a-z]?\.$")
_LOWER_CASE_WORD = re.compile(r"[a-z]+(?![\w-])")
_GOES_ON = re.compile(r"[\d(\[]|[a-z]+(?![\w-])")

# Where a sentence that is too long may be cut, best first; the cut comes after the match.
_CUTS = (re.compile(r"[;:,–—，、；：]\s+|[，、；：]|\n"), re.compile(r"\s+"))
_CODE_CUTS = (re.compile(r"\n"), re.compile(r"\s+"))


def split_sentences(text: str, max_chars: int = 600) -> list[Span]:
    """Return the character spans `(start, end)` of the sentences of `text`, trimmed and in order.

    The spans don't overlap and together hold every character that is not whitespace. A fenced code block is one
    sentence; a fragment (no letter, or fewer than three words) joins a neighbour of its block if both fit in
    `max_chars`; what is longer than that is cut at a clause if possible, else between words.
    """
    spans: list[Span] = []
    for block_start, block_end, is_code in _blocks(text):
        start, end = _trim(text, block_start, block_end)
        if start == end:
            continue
        sentences = [(start, end)] if is_code else _merge_fragments(text, _sentences(text, start, end), max_chars)
        for sentence in sentences:
            spans.extend(_cut(text, sentence, max_chars, _CODE_CUTS if is_code else _CUTS))
    return spans


def _blocks(text: str) -> Iterator[tuple[int, int, bool]]:
    """Yield `(start, end, is_code)` of the blocks: paragraphs, headings, list items, table rows and code fences."""
    start = position = 0
    fence = "`" * 3 if _starts_inside_fence(text) else ""
    for line in text.splitlines(keepends=True):
        begin, position = position, position + len(line)
        marker = _FENCE.match(line)
        if fence:
            if marker and marker[1].startswith(fence) and not marker[2]:
                yield start, position, True
                start, fence = position, ""
        elif marker:
            yield start, begin, False
            start, fence = begin, marker[1]
        elif line.isspace() or _HEADING.match(line):
            yield start, begin, False
            yield begin, position, False
            start = position
        elif _OPENS_BLOCK.match(line):
            yield start, begin, False
            start = begin
        elif not _ALPHANUMERIC.search(line):
            # A rule or the underline of a heading belongs to what stands above it.
            yield start, position, False
            start = position
    yield start, position, bool(fence)


def _starts_inside_fence(text: str) -> bool:
    """Tell whether the text is a piece of a document that was cut inside a code fence.

    Its first marker then closes a fence: it names no language, follows a line of code directly, and the markers after
    it pair up without it.
    """
    if "```" not in text:
        return False
    lines = text.splitlines()
    markers = [(number, match[2]) for number, line in enumerate(lines) if (match := _FENCE.match(line))]
    if not markers or markers[0][1] or markers[0][0] == 0 or not lines[markers[0][0] - 1].strip():
        return False
    return len(markers) % 2 == 1 or bool(markers[1][1])


def _sentences(text: str, start: int, end: int) -> list[Span]:
    """Return the trimmed spans of the sentences in the block `text[start:end]`."""
    from sentencex import get_sentence_boundaries

    block = text[start:end]
    masked = _CODE_OR_ADDRESS.sub(lambda match: "X" * len(match[0]), block).translate(_ANGLE_BRACKETS)
    cuts = [start + boundary["end_index"] for boundary in get_sentence_boundaries("en", masked)]
    spans = (_trim(text, left, right) for left, right in zip([start, *cuts], [*cuts, end], strict=True))
    sentences: list[Span] = []
    for left, right in spans:
        if left == right:
            continue
        if sentences and _is_false_boundary(text, sentences[-1], left):
            sentences[-1] = (sentences[-1][0], right)
        else:
            sentences.append((left, right))
    return sentences


def _is_false_boundary(text: str, sentence: Span, following: int) -> bool:
    """Tell whether the full stop at the end of `sentence` only ends an abbreviation."""
    if text[sentence[1] - 1] != ".":
        return False
    ending = text[max(sentence[0], sentence[1] - 12) : sentence[1]]
    if _CUT_GENUS.search(ending):
        return _LOWER_CASE_WORD.match(text, following) is not None
    return _ABBREVIATION.search(ending) is not None and _GOES_ON.match(text, following) is not None


def _merge_fragments(text: str, sentences: list[Span], max_chars: int) -> list[Span]:
    """Join fragments to a neighbour: one without letters (a list number, say) to the next, others to the one before.

    "Why?" joins what follows, too: behind a statement, it would make a question of it.
    """
    merged: list[Span] = []
    is_open = False  # the last of `merged` is a fragment that waits for its next neighbour
    for start, end in sentences:
        joins = is_open or (
            _is_fragment(text, start, end) and _LETTER.search(text, start, end) and text[end - 1] not in _QUESTION_MARKS
        )
        if merged and joins and end - merged[-1][0] <= max_chars:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
        is_open = _is_fragment(text, *merged[-1])
    if is_open and len(merged) > 1 and merged[-1][1] - merged[-2][0] <= max_chars:
        merged[-2:] = [(merged[-2][0], merged[-1][1])]
    return merged


def _is_fragment(text: str, start: int, end: int) -> bool:
    words = islice(BETWEEN_SPACES.finditer(text, start, end), _MIN_WORDS)
    return sum(1 for _ in words) < _MIN_WORDS or not _LETTER.search(text, start, end)


def _cut(text: str, span: Span, max_chars: int, cuts: tuple[re.Pattern[str], ...]) -> Iterator[Span]:
    """Yield `span` in trimmed pieces of at most `max_chars`; the last two share what is left about evenly."""
    start, end = _trim(text, *span)
    while end - start > max_chars:
        reach = start + max(1, min(max_chars, (end - start) // 2 + max_chars // 8))
        found = (_last_match_end(pattern, text, start + (reach - start) // 2, reach) for pattern in cuts)
        cut = next((position for position in found if position), reach)
        piece = _trim(text, start, cut)
        if piece[0] < piece[1]:
            yield piece
        start, end = _trim(text, cut, end)
    if start < end:
        yield start, end


def _last_match_end(pattern: re.Pattern[str], text: str, start: int, end: int) -> int:
    return max((match.end() for match in pattern.finditer(text, start, end)), default=0)


def _trim(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
