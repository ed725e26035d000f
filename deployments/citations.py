"""Citations: what an answer names as its sources, checked while it is being written against the sources it was given.

A citation is a bracket that holds source numbers and nothing else: `[2]`, `[1, 3]`, `[2-4]`. A number has one to three
digits and does not begin with 0: `[0]` is an index and `[2024]` a year. A bracket is left alone, as text,

- in code: between backticks on one line, unless a sentence has ended there, and between lines of three backticks;
- right after a lone small letter or a name with an underscore, as in `x[1]` and `top_k[1]`; after any other word it is
  a citation, as in `the sea[1]`;
- before `(` or `{`, as in a Markdown link or LaTeX's `\\sqrt[3]{x}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from deployments.contracts import Source

# Between two brackets. No more is ever held back but the brackets and the blank before them.
_MAX_CHARS = 64
# How far back to look to tell a citation from an index.
_BEFORE_CHARS = 32

_INSIDE = r"[0-9,; \u2010-\u2014-]"
_EVENT = re.compile(rf"`|\n|(?P<blank>[ \u00a0]?)\[(?P<inside>{_INSIDE}{{1,{_MAX_CHARS}}})\]")
_UNDECIDED = re.compile(rf"[ \u00a0]?(?:\[{_INSIDE}{{0,{_MAX_CHARS}}}\]?)?\Z")
_OPEN_BRACKET = re.compile(rf"\[{_INSIDE}{{0,{_MAX_CHARS}}}\Z")
_ITEM = re.compile(r" *([1-9][0-9]{0,2})(?: *[\u2010-\u2014-] *([1-9][0-9]{0,2}))? *")
_INDEXED = re.compile(r"(?:(?<!\w)[a-z]|\w*_\w*)(?:\[[0-9]{1,3}\])*\Z")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f]['\"\u2019\u201d)\]]*\s*\Z")


def cited_sources(cited: Collection[int], sources: Sequence[Source]) -> tuple[Source, ...]:
    """The sources whose numbers are among `cited`, in their own order."""
    return tuple(source for source in sources if source.number in cited)


def defuse_citations(text: str) -> str:
    """`text` with parentheses for what would read as a citation: a quoted sentence may have its own, `[12]` or so."""
    return _Rewriter(lambda _, bracket: f"({bracket[1:-1]})").rewrite(text, final=True)


class CitationFilter:
    """Checks the citations of one answer while it is being written. How the answer is cut makes no difference.

    With `remove_invalid`, numbers that were never given are taken out: `[1, 9]` becomes `[1]`, and ` [9]` nothing.
    `cited` and `removed` hold each number once, in the order of their first mention; they are complete after `flush`.
    """

    def __init__(self, num_sources: int, remove_invalid: bool = True) -> None:
        self._num_sources = num_sources
        self._remove_invalid = remove_invalid
        self._rewriter = _Rewriter(self._checked)
        self._cited: dict[int, None] = {}
        self._removed: dict[int, None] = {}

    @property
    def cited(self) -> tuple[int, ...]:
        """Numbers of sources that the answer cites."""
        return tuple(self._cited)

    @property
    def removed(self) -> tuple[int, ...]:
        """Numbers that the answer cited and no source has; none where they may stay."""
        return tuple(self._removed)

    def feed(self, delta: str) -> str:
        """The text that can be sent now. At most one citation, or what may become one, is held back."""
        checked = self._rewriter.rewrite(delta, final=False)
        return checked if self._remove_invalid else delta

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        checked = self._rewriter.rewrite("", final=True)
        return checked if self._remove_invalid else ""

    def _checked(self, ranges: Sequence[range], bracket: str) -> str:
        valid = [range(numbers.start, min(numbers.stop, self._num_sources + 1)) for numbers in ranges]
        self._cited.update(dict.fromkeys(number for numbers in valid for number in numbers))
        if valid == ranges or not self._remove_invalid:
            return bracket
        invalid = [range(max(numbers.start, self._num_sources + 1), numbers.stop) for numbers in ranges]
        self._removed.update(dict.fromkeys(number for numbers in invalid for number in numbers))
        items = ", ".join(_written(numbers) for numbers in valid if numbers)
        return f"[{items}]" if items else ""


class _Rewriter:
    """Replaces the citations of a text that comes in pieces.

    `replacement` is called with the numbers of a citation and the bracket as it is written; it may return nothing.
    """

    def __init__(self, replacement: Callable[[Sequence[range], str], str]) -> None:
        self._replacement = replacement
        # The end of what is decided, as far as later text depends on it, and from `_start` on what is not.
        self._text = ""
        self._start = 0
        self._num_ticks = 0
        self._in_code_line = False
        self._in_code_block = False
        self._sent = ""
        # The blank before a citation that is gone. It comes back if another citation follows.
        self._blank = ""

    def rewrite(self, delta: str, final: bool) -> str:
        """The text that is decided now, with its citations replaced."""
        text = self._text + delta
        undecided = None if final else _UNDECIDED.search(text, self._start)
        end = undecided.start() if undecided else len(text)
        pieces: list[str] = []
        done = self._start
        for event in _EVENT.finditer(text, self._start, end):
            if event["inside"] is None:
                self._follow_code(text, event.start())
            elif (ranges := _ranges(event["inside"])) and self._is_citation(text, event):
                pieces.append(self._plain(text[done : event.start()]))
                pieces.append(self._replaced(event, ranges, text[event.end() : event.end() + 1]))
                done = event.end()
        pieces.append(self._plain(text[done:end]))
        self._text = text[max(0, end - _BEFORE_CHARS) :]
        self._start = min(end, _BEFORE_CHARS)
        return "".join(pieces)

    def _follow_code(self, text: str, place: int) -> None:
        if text[place] == "\n":
            self._in_code_line = False
            return
        self._num_ticks = self._num_ticks + 1 if text[place - 1 : place] == "`" else 1
        if self._num_ticks == 3:
            self._in_code_block = not self._in_code_block
            self._in_code_line = False
        elif self._num_ticks < 3 and not self._in_code_block:
            self._in_code_line = not self._in_code_line

    def _is_citation(self, text: str, event: re.Match[str]) -> bool:
        before = text[max(0, event.start() - _BEFORE_CHARS) : event.start()]
        is_index = not event["blank"] and _INDEXED.search(before)
        in_code = self._in_code_block or (self._in_code_line and not _SENTENCE_END.search(before))
        return not is_index and not in_code and not text.startswith(("(", "{"), event.end())

    def _plain(self, text: str) -> str:
        if text:
            self._blank = ""
        return self._send(text)

    def _replaced(self, event: re.Match[str], ranges: Sequence[range], following: str) -> str:
        bracket = f"[{event['inside']}]"
        blank = event["blank"] or self._blank
        self._blank = ""
        replacement = self._replacement(ranges, bracket)
        if not replacement and _OPEN_BRACKET.search(self._sent + blank):
            # Without it, what is left on both sides could become a citation.
            replacement = f"({event['inside']})"
        if replacement:
            return self._send(blank + replacement)
        if _is_word(following):
            # What kept two words apart is gone.
            return self._send(blank or (" " if _is_word(self._sent[-1:]) else ""))
        self._blank = blank
        return ""

    def _send(self, text: str) -> str:
        self._sent = (self._sent + text)[-_MAX_CHARS - 2 :]
        return text


def _ranges(inside: str) -> list[range]:
    """The numbers between two brackets, item by item; none where they hold anything else."""
    ranges: list[range] = []
    for item in re.split("[,;]", inside):
        numbers = _ITEM.fullmatch(item)
        if numbers is None:
            return []
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if last < first:
            return []
        ranges.append(range(first, last + 1))
    return ranges


def _written(numbers: range) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
