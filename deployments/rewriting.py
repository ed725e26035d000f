"""The rewrite stage by rule: the queries that are searched beside a question which asks for more than one thing.

The rules know English; a question that none of them understands is searched as it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from pydantic import Field

from deployments.conversation import resolve
from deployments.ingestion.sentences import split_sentences
from deployments.names import content_words, names
from deployments.parsing import (
    AUX,
    FUNCTION_WORDS,
    QUOTED,
    WH,
    ParsedQuestion,
    quoted_spans,
    word_set,
)
from deployments.section import Section

# A capitalised article may belong to a name.
_ARTICLES = ("the ", "a ", "an ")

# A longer text, or one of many sentences, was pasted: its sentences are no parts of a question.
_SENTENCES_MAX_CHARS = 1000
_MAX_SENTENCES = 6
_SENTENCE_MIN_WORDS = 4
# A compared thing is a name or a few words; what is longer is a clause.
_THING_MAX_WORDS = 7
_COMMON_NOUN_MAX_WORDS = 4
# A longer text with "versus" in it reports a result rather than asks for a comparison.
_BARE_COMPARISON_MAX_WORDS = 8
# With fewer words beside a name, its own passage has the answer.
_BRIDGE_MIN_WORDS = 2
_APPOSITION_MAX_WORDS = 4
_APPOSITION_MAX_CHARS = 80
# Names and places to cut that are looked at: a question has few, and the work must not grow with the square of a text.
_NAMES_READ = 16
_CUTS_READ = 3

_ASKS = re.compile(
    rf"(?:(?:in|at|on|of|for|from|to|by|with|under|between) )?(?:{WH})\b|(?:{AUX})\b"
    r"|(?:please )?(?:name|tell|list|give|explain|describe|find|show|compare)\b",
    re.IGNORECASE,
)
_OPENING = re.compile(rf"(?:(?:{WH})\b(?: [\w'’-]+){{0,3}}? )?(?:{AUX}) ", re.IGNORECASE)
# Lower case only: a capitalised one belongs to a name.
_CLAUSE_WORD = re.compile(rf"\b(?:{WH}|{AUX}|that)\b")

_VERSUS = re.compile(r" (?:vs\.?|versus) ", re.IGNORECASE)
_BETWEEN = re.compile(r"\bbetween ", re.IGNORECASE)
_DIFFERENCE = re.compile(
    r"\b(?:differ|similar|compar|distin|contrast|common\b|choose\b|better\b)|^between ", re.IGNORECASE
)
_COMPARE = re.compile(r"compare (?P<first>.+?),? (?:and|with|to|against) (?P<second>.+)", re.IGNORECASE)
_COMPARED_TO = re.compile(r" (?:compared? (?:to|with)|differs? from|different (?:from|to|than)) ", re.IGNORECASE)
_RANKING = re.compile(
    r"\b(?:first|last|earlier|later|sooner|(?:more|most|less|least) [\w-]+|better|best|worse|worst|older|oldest|younger"
    r"|youngest|bigger|biggest|larger|largest|smaller|smallest|taller|tallest|longer|longest|higher|highest|faster"
    r"|fastest) ",
    re.IGNORECASE,
)
_BOTH = re.compile(r"\bboth ", re.IGNORECASE)
_SHARED = re.compile(
    r"\b(?:same|common|alike|similar|different|differ|connected|related|respective|respectively|each other)\b",
    re.IGNORECASE,
)
_COMPARING_WORDS = word_set("""
    same common alike similar different differ differs difference differences similarity similarities compare compared
    comparison distinction versus vs respective respectively other first last more most less least earlier later
    come came
""")

_AND_ANOTHER = re.compile(
    rf",? and (?=(?P<wh>{WH}) (?:[\w'’-]+ ){{0,2}}?(?:(?:{AUX})|it|they|he|she|\w+ed) \w"
    rf"|(?:{AUX}) (?:it|its|they|their|he|his|she|her|this|that|these|those)\b)",
    re.IGNORECASE,
)
_RELATIVE = re.compile(r" (?:who|whom|whose|which|what|where|that)\b| when$", re.IGNORECASE)
_NOUN_OF = re.compile(r"\b(?:the|a|an) [\w'’-]+ (?:[\w'’-]+ )?(?:of|for|in|by|behind|to) ", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.?!] \S")
_YEAR = re.compile(r"\b[12][0-9]{3}\b")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


class RewritingConfig(Section):
    """What is searched beside the question itself."""

    decompose: bool = Field(
        True, description="Search the parts of a question that asks for several things, too, found by rule."
    )
    max_sub_queries: int = Field(
        4, ge=1, description="Sub-queries of one question; each costs an embedding and its searches."
    )


_DEFAULTS = RewritingConfig()


def sub_queries(parsed: ParsedQuestion, config: RewritingConfig = _DEFAULTS) -> tuple[str, ...]:
    """The queries to search beside the question, most useful first; () for a simple question.

    No two are equal when casefolded, and none equals the question.
    """
    if not config.decompose:
        return ()
    found: dict[str, str] = {}
    for query in _candidates(parsed):
        found.setdefault(query.casefold().rstrip(" ?.!"), query)
    found.pop("", None)
    found.pop(parsed.text.casefold().rstrip(" ?.!"), None)
    return tuple(found.values())[: config.max_sub_queries]


def _candidates(parsed: ParsedQuestion) -> Iterator[str]:
    parts = _parts(parsed)
    if len(parts) > 1:
        yield from parts
    for part in parts:
        yield from _comparison(part) or _predicates(part) or _first_hops(part, with_quoted=bool(parsed.phrases))


def _parts(parsed: ParsedQuestion) -> list[str]:
    """The single questions or statements, each with its references resolved against those before it."""
    pieces = list(parsed.questions) if len(parsed.questions) > 1 else _sentences(parsed.text)
    parts: list[str] = []
    for piece in pieces:
        parts.append(resolve(piece, parts))
    return parts


def _sentences(text: str) -> list[str]:
    """The sentences of a short text of several, else the text."""
    if len(text) > _SENTENCES_MAX_CHARS or not _SENTENCE_END.search(text):
        return [text]
    spans: list[tuple[int, int]] = []
    # The sentence splitter takes UTF-8 only.
    for start, end in split_sentences(_SURROGATES.sub("\ufffd", text), max_chars=len(text)):
        # A full stop inside a name ("H2A.Z") has no space behind it.
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    sentences = [text[start:end] for start, end in spans]
    are_long = all(len(sentence.split()) >= _SENTENCE_MIN_WORDS for sentence in sentences)
    return sentences if are_long and len(sentences) <= _MAX_SENTENCES else [text]


@dataclass(frozen=True, slots=True)
class _Compared:
    """The compared things and the words around them."""

    things: tuple[str, ...]
    rest: str


def _comparison(part: str) -> list[str]:
    """One query per compared thing: its name with what is asked about it."""
    text = part.rstrip(" ?.!")
    compared = _versus(text)
    if compared is None and _asks(part):
        compared = _between(text) or _compared_to(text) or _alternatives(text) or _both(text) or _shared(text)
    if compared is None:
        return []
    about = [word for word in content_words(compared.rest) if word.casefold() not in _COMPARING_WORDS]
    return [" ".join([_bare(thing), *about]) for thing in compared.things]


def _asks(part: str) -> bool:
    return part.endswith("?") or bool(_ASKS.match(part) or _DIFFERENCE.match(part))


def _versus(text: str) -> _Compared | None:
    """Read "X vs Y", alone or in a question."""
    match = _VERSUS.search(text)
    if match is None or not (_ASKS.match(text) or len(text.split()) <= _BARE_COMPARISON_MAX_WORDS):
        return None
    before, first = _thing_at_end(text[: match.start()])
    second, after = _thing_at_start(text[match.end() :])
    return _of_two(first, second, f"{before} {after}")


def _between(text: str) -> _Compared | None:
    """Read "difference between X and Y" and "Between X and Y, which ..."."""
    match = _BETWEEN.search(text)
    if match is None or not _DIFFERENCE.search(text):
        return None
    first, _, right = text[match.end() :].partition(" and ")
    second, after = _thing_at_start(right)
    return _of_two(first, second, f"{text[: match.start()]} {after}")


def _compared_to(text: str) -> _Compared | None:
    """Read "Compare X with Y" and "How does X differ from Y"."""
    if command := _COMPARE.match(text):
        second, after = _thing_at_start(command["second"])
        return _of_two(command["first"], second, after)
    match, opening = _COMPARED_TO.search(text), _OPENING.match(text)
    if match is None or opening is None or opening.end() > match.start():
        return None
    second, after = _thing_at_start(text[match.end() :])
    return _of_two(text[opening.end() : match.start()], second, f"{opening[0]} {after}")


def _alternatives(text: str) -> _Compared | None:
    """Read "Which is older, X or Y", "Which came first X or Y" and "Is X or Y older"."""
    left, conjunction, right = text.rpartition(" or ")
    if not conjunction:
        return None
    left = left.rstrip(",")
    head, *listed = left.split(", ")
    while listed and not _is_thing(listed[0]):
        head = f"{head}, {listed.pop(0)}"
    if listed and _is_thing(right):
        return _Compared((*listed, right), head)
    rankings = list(_RANKING.finditer(left))
    if rankings and _is_thing(left[rankings[-1].end() :]) and _is_thing(right):
        return _Compared((left[rankings[-1].end() :], right), left[: rankings[-1].end()])
    before, first = _name_at_end(left)
    if not first and (opening := _OPENING.match(left)):
        before, first = opening[0], left[opening.end() :]
        if len(_bare(first).split()) > _COMMON_NOUN_MAX_WORDS:
            return None
    second, after = _thing_at_start(right, max_words=len(_bare(first).split()))
    return _of_two(first, second, f"{before} {after}")


def _both(text: str) -> _Compared | None:
    """Read "Are X and Y both ..." and "Who played in both X and Y"."""
    match = _BOTH.search(text)
    if match is None:
        return None
    before, after = text[: match.start()], text[match.end() :]
    left, conjunction, right = after.partition(" and ")
    if conjunction and not _is_thing(before.partition(" and ")[2]):
        # "both magazines, X and Y, ..." says what they are before it names them.
        kind, _, first = left.rpartition(", ")
        second, after = _thing_at_start(right, max_words=len(_bare(first).split()) + 1)
        return None if first.startswith(("a ", "an ")) else _of_two(first, second, f"{before} {kind} {after}")
    left, conjunction, right = before.partition(" and ")
    opening = _OPENING.match(left)
    first = left[opening.end() if opening else 0 :].partition(", ")[0]
    second, _ = _thing_at_start(right)
    return _of_two(first, second, f"{opening[0] if opening else ''} {after}") if conjunction else None


def _shared(text: str) -> _Compared | None:
    """Read "Were X and Y from the same country" and "What do X and Y have in common"."""
    left, conjunction, right = text.partition(" and ")
    opening = _OPENING.match(left)
    if not conjunction or opening is None or not _SHARED.search(right):
        return None
    first = left[opening.end() :]
    second, after = _thing_at_start(right, max_words=len(_bare(first).split()))
    return _of_two(first, second, f"{opening[0]} {after}")


def _of_two(first: str, second: str, rest: str) -> _Compared | None:
    return _Compared((first, second), rest) if _is_thing(first) and _is_thing(second) else None


def _is_thing(text: str) -> bool:
    """Tell whether the text can be the name of one thing: a few words, no clause, no pronoun."""
    words = _bare(text).split()
    if not 0 < len(words) <= _THING_MAX_WORDS or _CLAUSE_WORD.search(text) or words[0] in FUNCTION_WORDS:
        return False
    return any(character.isalpha() for character in text) and bool(content_words(text) or names(f"of {text}"))


def _bare(thing: str) -> str:
    """Without punctuation, quotation marks and article."""
    thing = thing.strip(' ,;:.?!"“”«»')
    return next((thing[len(article) :] for article in _ARTICLES if thing.startswith(article)), thing)


def _thing_at_start(text: str, max_words: int = _COMMON_NOUN_MAX_WORDS) -> tuple[str, str]:
    """The thing that opens the text, and what follows it: a name, or words up to the first function word."""
    text = text.strip()
    if quoted := QUOTED.match(text):
        return quoted[0], text[quoted.end() :]
    article = next((article for article in _ARTICLES if text.startswith(article)), "")
    # Inside a sentence a capital makes a name; "of" puts the text there.
    for name in names(f"of {text}"):
        if name.start - len("of ") in (0, len(article)):
            end = name.end - len("of ")
            return text[:end], text[end:]
    words: list[str] = []
    for word in text[len(article) :].split():
        if len(words) == max_words or word.strip(",;:").casefold() in FUNCTION_WORDS:
            break
        words.append(word)
        if word[-1] in ",;:":
            break
    thing = article + " ".join(words)
    return thing, text[len(thing) :]


def _thing_at_end(text: str) -> tuple[str, str]:
    before, thing = _name_at_end(text)
    if thing:
        return before, thing
    words = text.split()
    first = len(words)
    while first > 0 and words[first - 1].casefold() not in FUNCTION_WORDS and words[first - 1][-1] not in ",;:?!":
        first -= 1
    first = max(first, len(words) - _COMMON_NOUN_MAX_WORDS)
    return " ".join(words[:first]), " ".join(words[first:])


def _name_at_end(text: str) -> tuple[str, str]:
    for name in names(text)[-1:]:
        if name.end == len(text):
            return text[: name.start], name.text
    return text, ""


def _predicates(part: str) -> list[str]:
    """The two questions in "Who wrote X and when was it published?"."""
    masked = QUOTED.sub(lambda match: "Q" * len(match[0]), part)
    for match in islice(_AND_ANOTHER.finditer(masked), _CUTS_READ):
        first, second = part[: match.start()], part[match.end() :]
        # "the singer who ... and who ..." goes on describing the singer.
        is_relative = match["wh"] and re.search(rf" {match['wh']}\b", first, re.IGNORECASE)
        is_whole = bool(_OPENING.match(first) or len(content_words(first)) > 1)
        if is_relative or not is_whole or not content_words(first) or not _asks(first):
            continue
        mark = "?" if part.endswith("?") else ""
        return [first + mark, resolve(second[0].upper() + second[1:], [first])]
    return []


def _first_hops(part: str, with_quoted: bool) -> list[str]:
    """The names from which a question of two hops sets out, each with the noun that says what it is: "the film X"."""
    if not _asks(part):
        return []
    text = part.rstrip(" ?.!")
    quoted = [(start + 1, end - 1) for start, end in quoted_spans(text)] if with_quoted else []
    hops: list[str] = []
    others, position = "", 0
    named = _names_and_places(QUOTED.sub(lambda match: '"' * len(match[0]), text) if quoted else text)
    for start, end in sorted([*quoted, *named])[:_NAMES_READ]:
        apposition = _apposition(text, start)
        name = text[start:end].strip(" ,;:.?!")
        if apposition or (start, end) in quoted or _has_several_words(name):
            hops.append(f"{apposition}{name}")
        others += f"{text[position:start].removesuffix(apposition)} _ "
        position = end
    others += text[position:]
    if len(content_words(others)) < _BRIDGE_MIN_WORDS or not _has_hop(others, len(hops)):
        return []
    return [hop for hop in hops if content_words(hop) and not any(hop != other and hop in other for other in hops)]


def _names_and_places(text: str) -> list[tuple[int, int]]:
    """Start and end of each name; a place keeps what it lies in: "Portland, Oregon"."""
    spans: list[tuple[int, int]] = []
    for name in names(text):
        if spans and text[spans[-1][1] : name.start] == ", " and not text.startswith((" and", " or", ","), name.end):
            spans[-1] = (spans[-1][0], name.end)
        else:
            spans.append((name.start, name.end))
    return spans


def _has_several_words(name: str) -> bool:
    """Tell a name of several words from a word with its year, or with the place it lies in."""
    return any(" " in _YEAR.sub("", piece).strip() for piece in name.split(", "))


def _has_hop(blanked: str, num_names: int) -> bool:
    """Tell whether the question asks about something that it only describes by way of a name (there blanked)."""
    opening = _ASKS.match(blanked)
    inner = blanked[opening.end() :] if opening else blanked
    return num_names > 1 or bool(_RELATIVE.search(inner)) or bool(_NOUN_OF.search(inner))


def _apposition(text: str, start: int) -> str:
    """The noun that says what a name is, with a space behind it: "the film "; empty where there is none."""
    before = f" {text[max(0, start - _APPOSITION_MAX_CHARS) : start]}".rstrip('"“«')
    _, article, noun = before.rpartition(" the ")
    words = noun.split()
    if not article or not noun.endswith(" ") or not 0 < len(words) <= _APPOSITION_MAX_WORDS:
        return ""
    is_noun = all(word[-1].isalnum() and word.casefold() not in FUNCTION_WORDS for word in words)
    return f"the {noun}" if is_noun else ""
