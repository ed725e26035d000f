"""The parse stage: a raw question becomes a clean one, its filters, phrases and single questions, or a clear refusal.

Every regular expression here is linear: neighbouring quantifiers never match the same character, and a quoted text ends
at the next quotation mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any

from pydantic import Field

from deployments.errors import InvalidInput
from deployments.normal_forms import normalized
from deployments.section import Section

QUESTION_MAX_CHARS = 8192
# For each character that is counted, with marks and white space that are gone by then.
_MOST_RAW_CHARS = 16
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def word_set(words: str) -> frozenset[str]:
    """The words of a text that lists them."""
    return frozenset(words.split())


WH_WORDS = word_set("who whom whose what which when where why how")
AUXILIARIES = word_set("""
    is are was were am be been being do does did has have had can could will would shall should may might must
    isn't aren't wasn't weren't don't doesn't didn't hasn't haven't hadn't can't couldn't won't wouldn't shouldn't
""")
# Either set as the alternatives of a regular expression.
WH = "|".join(sorted(WH_WORDS))
AUX = "|".join(sorted(AUXILIARIES))
# Words that say how a text is built, not what it is about.
FUNCTION_WORDS = (
    WH_WORDS
    | AUXILIARIES
    | word_set("""
        a an the this that these those some any each every either neither both all no another such
        i me my mine you your yours he him his she her hers it its we us our ours they them their theirs one
        and or but nor so yet if then than because while although though unless until since whether also too not
        of in on at by for with from to into onto about as like over under between among through during before after
        against within without upon along around near per via off out up down across behind beyond towards toward
        there here just only very please
    """)
)

# A text in quotation marks that stands as a word of its own: no inch mark, no apostrophe.
QUOTED = re.compile(r'(?<![\w"])"[^"]*"(?!\w)|“[^“”]*”|«[^«»]*»')

_FILTER = re.compile(
    r"(?<!\S)(?P<field>[A-Za-z_][A-Za-z0-9_.-]*):(?P<operator>>=|<=|!=|>|<)?"
    r'(?:(?P<quoted>"[^"]*"|“[^“”]*”)[.,;?!]*|(?P<bare>[^\s":“”][^\s"“”]*)?)(?!\S)'
)
_FILTER_OR_QUOTED = re.compile(f"{_FILTER.pattern}|{QUOTED.pattern}")
_METADATA_FIELD = re.compile(r"metadata\.[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?")
_OPENS_NUMBER = re.compile(r"-?[0-9]")
_COMPARISONS = {">=": "gte", "<=": "lte", "!=": "ne", ">": "gt", "<": "lt"}
_CONTAINS_FIELDS = frozenset({"source", "title"})
_TEXT_FIELDS = _CONTAINS_FIELDS | {"document_id"}
# ISO dates compare as texts; a bare year must stay one to be compared with them.
_DATE_FIELD = "date"
_TIME_FIELDS = frozenset({_DATE_FIELD, "year"})
# The year after 9999 has five digits and stands before it as a text.
_PART_OF_DATE = re.compile(r"(?!9999)[0-9]{4}(?:-(?:0[1-9]|1[0-2]))?")
# What is written for a range, a list or an equality elsewhere, and would be a text that no year or date equals.
_OTHER_GRAMMAR = re.compile(r"[=<>~]+\S+|[0-9]{3,}(?:[-–—,;/][0-9]{3,})+")
_PUNCTUATION = ".,;?!"
_QUESTION_MARKS = "?？؟"

_SENTENCE_MARKS = re.compile(r"(?<![?!？؟])[?!？؟]++[\"”»)\]]*+\s*+")
_CONJUNCTIONS = frozenset({"and", "but", "or", "also", "so", "then"})
_FIRST_WORDS = re.compile(r"[\w'’]+")


class ParsingConfig(Section):
    """What a question may hold besides words."""

    question_max_chars: int = Field(
        QUESTION_MAX_CHARS, ge=1, description="Longer questions are refused; counted in characters after cleaning."
    )
    inline_filters: bool = Field(
        True, description="Read `field:value` inside a question as a filter of the search instead of as text."
    )
    filter_fields: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")], ...] = Field(
        ("source", "title", "document_id", "date", "year"),
        description="Fields that an inline filter may name; every metadata field is also reachable as `metadata.NAME`.",
    )
    phrases: bool = Field(True, description="Find the quoted phrases of a question.")
    split_questions: bool = Field(True, description="Find the single questions in a text that asks several.")
    max_questions: int = Field(
        5, ge=1, description="Single questions found in one text; what follows belongs to the last of them."
    )


_DEFAULTS = ParsingConfig()


@dataclass(frozen=True, slots=True)
class ParsedQuestion:
    """A question as the lane reads it.

    `text` is clean, without its inline filters, quoted phrases in place. `questions` are the single questions in their
    order, `(text,)` where there is one; together they hold all of `text`. `phrases` are the quoted texts without
    quotation marks, no two equal when casefolded. `filter` is that of a `SearchRequest`.
    """

    text: str
    questions: tuple[str, ...]
    phrases: tuple[str, ...] = ()
    filter: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InlineFilter:
    """A filter as it was written in a question: `wanted` is a value or an object of comparisons."""

    field: str
    wanted: Any
    written: str


def parse_question(text: str, config: ParsingConfig = _DEFAULTS) -> ParsedQuestion:
    """Clean the question and find its filters, phrases and single questions.

    Raises InvalidInput for a question without text, one that is longer than `question_max_chars`, and for a filter
    that has no value, contradicts another or can't be read.
    """
    question = clean_question(text, config.question_max_chars)
    filters: tuple[InlineFilter, ...] = ()
    if config.inline_filters:
        question, filters = take_filters(question, config.filter_fields)
        if not question:
            raise InvalidInput("the question holds only filters; add what to look for")
    return ParsedQuestion(
        text=question,
        questions=_single_questions(question, config.max_questions) if config.split_questions else (question,),
        phrases=_phrases(question) if config.phrases else (),
        filter=_merged(filters),
    )


def clean_question(text: str, max_chars: int) -> str:
    """Return the text in NFC with control characters gone and white space folded, its filters still in it.

    Raises InvalidInput for a text that is then empty or longer than `max_chars`.
    """
    # Megabytes are no question, whatever would be left of them, and cleaning them would hold up everybody else.
    too_long = len(text) > _MOST_RAW_CHARS * max_chars
    question = text if too_long else " ".join(_CONTROL.sub(" ", normalized("NFC", text)).split())
    if not question:
        raise InvalidInput("the question is empty; send some text")
    if len(question) > max_chars:
        raise InvalidInput(f"the question has {len(question)} characters; shorten it to {max_chars}")
    return question


def take_filters(question: str, fields: Iterable[str]) -> tuple[str, tuple[InlineFilter, ...]]:
    """Return a clean question without its inline filters, and the filters in their order.

    Only fields of `fields` and `metadata.NAME` make a filter, and none does inside quotation marks. Raises InvalidInput
    for a filter without a value, or with one that can't be read.
    """
    known = frozenset(fields)
    kept: list[str] = []
    filters: list[InlineFilter] = []
    position = 0
    for match in _FILTER_OR_QUOTED.finditer(question):
        inline_filter = _inline_filter(match, known)
        if inline_filter is None:
            continue
        filters.append(inline_filter)
        if before := question[position : match.start()].strip():
            kept.append(before)
        # The mark that ends the question stands behind the filter, but belongs to the words before it.
        mark = match[0][len(match[0].rstrip(_PUNCTUATION)) :].strip(",;")
        if mark and kept and (kept[-1][-1].isalnum() or kept[-1][-1] in '"”»)'):
            kept[-1] += mark
        position = match.end()
    kept.append(question[position:].strip())
    return " ".join(kept).strip(), tuple(filters)


def quoted_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of every text in quotation marks, the marks included."""
    return [match.span() for match in QUOTED.finditer(text)]


def _inline_filter(match: re.Match[str], known: frozenset[str]) -> InlineFilter | None:
    """The filter that was matched; None for what only looks like one."""
    name, operator, quoted, bare = match["field"], match["operator"], match["quoted"], match["bare"] or ""
    if name is None or not (name in known or _METADATA_FIELD.fullmatch(name)):
        return None
    value = quoted[1:-1].strip() if quoted else bare.rstrip(_PUNCTUATION)
    if not (value or quoted or operator):
        return None
    if not value:
        raise InvalidInput(f"the filter {name!r} has no value; write it as '{name}:VALUE', or leave a space after ':'")
    return InlineFilter(name, _wanted(match, value), match[0])


def _wanted(match: re.Match[str], value: str) -> Any:
    name, operator, quoted, bare = match["field"], match["operator"], match["quoted"], match["bare"] or ""
    if name in _TEXT_FIELDS and operator:
        raise InvalidInput(
            f"the filter {name!r} holds a text, which {operator!r} can't compare; leave {operator!r} out"
        )
    if name in _CONTAINS_FIELDS:
        return {"contains": value}
    if operator:
        comparison = _COMPARISONS[operator]
        return {comparison: value} if quoted else _compared(name, comparison, value)
    if quoted or name in _TEXT_FIELDS:
        return value
    return _value_or_range(name, value, is_open=bare.endswith("..") and not bare.endswith("..."))


def _value_or_range(name: str, value: str, is_open: bool) -> Any:
    """`2001` → 2001, `2001..2010` → both ends inclusive; a text with two dots in it stays a text.

    A year or a month as a date is the range of its days.
    """
    low, dots, high = value.partition("..")
    if not (is_open or dots) or not (_OPENS_NUMBER.match(low) or _OPENS_NUMBER.match(high)):
        if _is_part_of_date(name, value):
            return _range(name, value, value)
        return _scalar(name, value)
    if not low or not high:
        raise InvalidInput(f"the filter {name!r} has a range with one end; write '{name}:>=FROM' or '{name}:<=TO'")
    if high.startswith(".") or isinstance(_scalar(name, low), str) != isinstance(_scalar(name, high), str):
        raise InvalidInput(
            f"the filter {name!r} has no range in {value!r}; write '{name}:FROM..TO', or a text in quotation marks"
        )
    return _range(name, low, high)


def _range(name: str, low: str, high: str) -> dict[str, str | int | float]:
    return {**_compared(name, "gte", low), **_compared(name, "lte", high)}


def _compared(name: str, comparison: str, value: str) -> dict[str, str | int | float]:
    """A year or a month as a date ends before the next one: `>2020` → from 2021 on, `<=2020` → before 2021."""
    if not _is_part_of_date(name, value) or comparison in ("gte", "lt"):
        return {comparison: _scalar(name, value)}
    if comparison == "ne":
        raise InvalidInput(
            f"the filter {name!r} can't leave out {value!r} as a whole; write '{name}:<{value}' or '{name}:>{value}'"
        )
    return {"gte" if comparison == "gt" else "lt": _following(value)}


def _is_part_of_date(name: str, value: str) -> bool:
    return name == _DATE_FIELD and _PART_OF_DATE.fullmatch(value) is not None


def _following(part_of_date: str) -> str:
    """The year or month after this one, the first of the next year as that year: 2020-12 → 2021."""
    year, _, month = part_of_date.partition("-")
    return f"{year}-{int(month) + 1:02}" if month and month != "12" else f"{int(year) + 1:04}"


def _scalar(name: str, value: str) -> str | int | float:
    """The value as a number where it is one. Raises InvalidInput for what another grammar writes for years or dates."""
    if name in _TIME_FIELDS and _OTHER_GRAMMAR.fullmatch(value):
        raise InvalidInput(
            f"the filter {name!r} can't read {value!r}; write '{name}:2001', '{name}:>=2001' or '{name}:2001..2010'"
        )
    if name == _DATE_FIELD or not _NUMBER.fullmatch(value):
        return value
    return float(value) if "." in value else int(value)


def _merged(filters: tuple[InlineFilter, ...]) -> dict[str, Any]:
    """One filter per field: equal values become a list, comparisons one object."""
    merged: dict[str, Any] = {}
    for one in filters:
        merged[one.field] = _both(one.field, merged[one.field], one.wanted) if one.field in merged else one.wanted
    return merged


def _both(name: str, first: Any, second: Any) -> Any:
    if isinstance(first, dict) != isinstance(second, dict):
        raise InvalidInput(f"the filter {name!r} is given both as a value and as a comparison; keep one of them")
    if isinstance(first, dict):
        for comparison in first.keys() & second.keys():
            if first[comparison] != second[comparison]:
                raise InvalidInput(f"the filter {name!r} has two values for {comparison!r}; keep one of them")
        return {**first, **second}
    values = first if isinstance(first, list) else [first]
    if second in values:
        return first
    return [*values, second]


def _phrases(question: str) -> tuple[str, ...]:
    phrases: dict[str, str] = {}
    for start, end in quoted_spans(question):
        phrase = question[start + 1 : end - 1].strip(f"{_PUNCTUATION}: ")
        if _is_telling(phrase):
            phrases.setdefault(phrase.casefold(), phrase)
    return tuple(phrases.values())


def _is_telling(phrase: str) -> bool:
    """Tell whether the phrase narrows a search: several words, or one that is more than a function word."""
    if " " in phrase:
        return any(character.isalnum() for character in phrase)
    return len(phrase) > 2 and phrase.casefold() not in FUNCTION_WORDS and any(c.isalnum() for c in phrase)


def _single_questions(text: str, limit: int) -> tuple[str, ...]:
    """Cut behind a question mark where another question follows; what is none stays with the question before it."""
    masked = QUOTED.sub(lambda match: "x" * len(match[0]), text)
    ends = [match.end() for match in _SENTENCE_MARKS.finditer(masked) if _ends_question(match[0])]
    cuts = [0]
    for start, end in zip(ends, [*ends[1:], len(text)], strict=False):
        if len(cuts) < limit and _is_question(text[start:end].strip()):
            cuts.append(start)
    return tuple(text[start:end].strip() for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True))


def _ends_question(marks: str) -> bool:
    # A script with full-width marks puts no space behind them.
    return any(mark in marks for mark in _QUESTION_MARKS) and (marks[-1].isspace() or "？" in marks)


def _is_question(piece: str) -> bool:
    words = [match[0].casefold().replace("’", "'") for match in islice(_FIRST_WORDS.finditer(piece), 3)]
    if not words:
        return False
    if words[0] in _CONJUNCTIONS:
        del words[0]
    opens_question = bool(words) and (words[0] in AUXILIARIES or words[0].split("'")[0] in WH_WORDS)
    is_command = words[1:2] == ["not"]
    ends_question = piece.rstrip('"”»)] ')[-1:] in tuple(_QUESTION_MARKS)
    # A lower-case piece that opens like no question goes on with the one before: a title may hold a question mark.
    return (opens_question and not is_command) or (ends_question and not piece[0].islower())
