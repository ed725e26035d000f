"""Reference resolution by rule: how a question that refers back comes to stand alone.

The rules know English. A question that none of them understands stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from deployments.errors import InvalidInput
from deployments.names import WORD, YEAR, names, split_words, word_key
from deployments.parsing import (
    AUX,
    AUXILIARIES,
    FUNCTION_WORDS,
    QUOTED,
    WH,
    WH_WORDS,
    ParsingConfig,
    clean_question,
    take_filters,
    word_set,
)
from deployments.topics import PRONOUN, TURNS_READ, WHAT_IS, is_fragment, topic_for

# What is longer is a text that somebody pasted, not a question.
_TURN_MAX_CHARS = 1000
_ANSWER_CHARS_READ = 2000
# A question has one or two pronouns; a text full of them is no question.
_PRONOUNS_READ = 5
# A longer one says too much to be repeated inside another question.
_EARLIER_MAX_CHARS = 300

_PREPOSITIONS = word_set("""
    of in on at by for with from to into about as like over under between among through during before after against
    within without around near since until than
""")

# Code, and the addresses, file names and attributes that stand as one word; "e.g." and "3.5" are none.
_LITERAL = re.compile(r"`[^`]*`|(?<!\S)\S*(?:://|@|[^\W\d_]{2}\.\w|\w\.[^\W\d_]{2})(?:\S*\w)?")
# "That's great, thanks." before a question is a word on the answer.
_REMARK = re.compile(r"that(?:['’]s|\s+(?:is|was))\s[^.!?]*+[.!]++\s+(?=[^?]*+\?)", re.IGNORECASE)
_POSSESSIVES = word_set("its their theirs his hers")
_DEMONSTRATIVES = word_set("this that these those")
_TIME_WORDS = word_set("day days week weekend month year years decade century morning evening night season time moment")
_CLAUSE_BREAK = re.compile(
    rf"[,;:.?!]|\b(?:and|but|or|because|if|that|while|since|after|before|so|as|than|until|although|though|{WH})\b",
    re.IGNORECASE,
)
_DETERMINER = re.compile(
    rf"\b(?:the|an?|any|some|each|every|my|your|our|most|all|many|{AUX})\s+(?=([\w'’-]+))", re.IGNORECASE
)
# "Is it true that ...", "How long does it take to ...", "What time is it": such an "it" stands for nothing.
_EXPLETIVE = re.compile(
    r"it\s+(?:rains?|snows?|raining|snowing|takes?|took|costs?)\b"
    r"|it\s+(?:(?:is|was|be|still|also|really|ever|not)\s+){0,2}[\w-]+\s+(?:for\s+[\w-]+\s+)?(?:that|to\s+[\w-]+)\s+\S",
    re.IGNORECASE,
)
_TIME_IS = re.compile(r"\b(?:time|day|date|year)\s+(?:is|was)\s$", re.IGNORECASE)

_WHAT_ABOUT = re.compile(r"(?:(?:and|but|or|so|ok|okay)[\s,]+)?(?:what|how)\s+about\s+", re.IGNORECASE)
_AND = re.compile(r"(?:and|but|or|so|also)\b[\s,]*", re.IGNORECASE)
_BARE = re.compile(
    rf"(?:how (?:much|many|long|far|often|old|come)|(?:what|which) (?:else|ones?|year|time)|since when|{WH})"
    r"(?: (?:exactly|else|then|not|so))?(?: (?:is|was|did|does))?(?: (?:that|this))?(?: so)?\s*[?!.]*",
    re.IGNORECASE,
)
# Words that no other language writes so: "was" opens a question in German as well, "is" in Dutch.
_ENGLISH_ONLY = WH_WORDS | word_set("the of does did")

_DEFAULTS = ParsingConfig()


def last_question(messages: Sequence[Mapping[str, str]]) -> str:
    """The text of the last user message; raises InvalidInput where there is none."""
    return messages[_user_turns(messages)[-1]].get("content", "")


def standalone_question(messages: Sequence[Mapping[str, str]], config: ParsingConfig = _DEFAULTS) -> str:
    """The last user message as a question that needs no other message to be understood.

    A reference is resolved against the user's turns before it, the latest first; where those name nothing, against the
    last answer. A question that stands alone is returned untouched. Inline filters stay with the turn that has them.
    Raises InvalidInput where no message is the user's.
    """
    *before, last = _user_turns(messages)
    content = messages[last].get("content", "")
    try:
        question, filters = _without_filters(content, config)
    except InvalidInput:
        # The parse stage refuses it and says why.
        return content
    earlier = _standing_alone((messages[number].get("content", "") for number in before[-TURNS_READ:]), config)
    answer = next((m.get("content", "") for m in reversed(messages[:last]) if m.get("role") == "assistant"), "")
    resolved = resolve(question, earlier, answer)
    return content if resolved == question else " ".join([resolved, *filters])


def resolve(question: str, earlier: Sequence[str], answer: str = "") -> str:
    """The question with its reference replaced by what the `earlier` questions (oldest first) name.

    `answer` is read where they name nothing, and for the person that the last of them asks for. Returns the question
    itself where it stands alone or nothing fits.
    """
    if len(question) > _TURN_MAX_CHARS:
        return question
    if earlier and _BARE.fullmatch(_AND.sub("", question, count=1)):
        return _with(question, earlier[-1])
    pronoun = _reference(question)
    if pronoun is not None:
        topic = topic_for(pronoun[0].casefold(), earlier, answer[:_ANSWER_CHARS_READ])
        return _replaced(question, pronoun, topic) if topic else question
    return _completed(question, earlier[-1]) if earlier else question


def _user_turns(messages: Sequence[Mapping[str, str]]) -> list[int]:
    turns = [number for number, message in enumerate(messages) if message.get("role") == "user"]
    if not turns:
        raise InvalidInput("messages hold no message with role 'user'; add the question as one")
    return turns


def _without_filters(content: str, config: ParsingConfig) -> tuple[str, list[str]]:
    question = clean_question(content, config.question_max_chars)
    if not config.inline_filters:
        return question, []
    question, filters = take_filters(question, config.filter_fields)
    return question, [one.written for one in filters]


def _standing_alone(contents: Iterable[str], config: ParsingConfig) -> list[str]:
    """Earlier turns, oldest first, each resolved against those before it; what can't be read is left out."""
    earlier: list[str] = []
    for content in contents:
        if len(content) > _TURN_MAX_CHARS:
            continue
        try:
            question, _ = _without_filters(content, config)
        except InvalidInput:
            continue
        if question:
            earlier.append(resolve(question, earlier))
    return earlier


def _masked(text: str, literal: str = "Q") -> str:
    """The text with every quoted phrase made one capitalised word of the same length.

    So are code and addresses, out of the letter `literal`.
    """
    text = QUOTED.sub(lambda match: "Q" * len(match[0]), text)
    return _LITERAL.sub(lambda match: literal * len(match[0]), text)


def _reference(question: str) -> re.Match[str] | None:
    """The first pronoun that stands for something outside the question."""
    masked = _masked(question)
    remark = _REMARK.match(masked)
    for pronoun in islice(PRONOUN.finditer(masked, remark.end() if remark else 0), _PRONOUNS_READ):
        if _is_pronoun(masked, pronoun) and not _has_antecedent(masked, pronoun):
            return pronoun
    return None


def _is_pronoun(masked: str, match: re.Match[str]) -> bool:
    """Tell a pronoun from a part of a name, an "it" that stands for nothing and a "that" that joins clauses."""
    word, before = match[0].casefold(), masked[: match.start()]
    opens_sentence = not before.strip() or before.rstrip()[-1] in ".?!:"
    if match[0][0].isupper() and not opens_sentence:
        return False
    if word == "it":
        return not (_EXPLETIVE.match(masked, match.start()) or _TIME_IS.search(before))
    if word not in _DEMONSTRATIVES:
        return True
    following = _word_after(masked, match.end())
    if following in _TIME_WORDS or (word in ("that", "those") and following in ("who", "that", "which", "of", "with")):
        return False
    return word != "that" or opens_sentence or _word_before(before) in AUXILIARIES | _PREPOSITIONS


def _has_antecedent(masked: str, pronoun: re.Match[str]) -> bool:
    """Tell whether the question itself may name what the pronoun stands for.

    A possessive may stand for the subject of its own clause, any other pronoun only for something outside of it.
    """
    before = masked[: pronoun.start()]
    breaks = [match.start() for match in _CLAUSE_BREAK.finditer(before) if match.start() > 0]
    if breaks:
        return _names_something(before[: breaks[-1]])
    if not _is_possessive(masked, pronoun):
        return False
    if names(before):
        return True
    return not WHAT_IS.match(before) and _word_before(before) != "of" and _names_something(before)


def _names_something(text: str) -> bool:
    if names(text):
        return True
    return any(word_key(match[1]) not in FUNCTION_WORDS for match in _DETERMINER.finditer(text))


def _is_possessive(text: str, pronoun: re.Match[str]) -> bool:
    word = pronoun[0].casefold()
    if word == "her":
        return _word_after(text, pronoun.end()) not in FUNCTION_WORDS | {""}
    return word in _POSSESSIVES


def _word_after(text: str, position: int) -> str:
    """Key of the word that follows without punctuation between, or an empty string."""
    match = WORD.search(text, position)
    return word_key(match[0]) if match and not text[position : match.start()].strip() else ""


def _word_before(text: str) -> str:
    words = text[-40:].split()
    return word_key(words[-1]) if words else ""


def _replaced(question: str, pronoun: re.Match[str], topic: str) -> str:
    before, after = question[: pronoun.start()], question[pronoun.end() :]
    following = _word_after(question, pronoun.end())
    if pronoun[0].casefold() in _DEMONSTRATIVES and following and following not in FUNCTION_WORDS:
        return _with(question, topic)
    if _is_possessive(question, pronoun):
        topic += "'s"
    if pronoun[0][0].isupper():
        topic = topic[0].upper() + topic[1:]
    return before + topic + after


def _with(question: str, addition: str) -> str:
    return f"{question} ({addition})" if len(addition) <= _EARLIER_MAX_CHARS else question


def _completed(question: str, earlier: str) -> str:
    """A fragment ("And in 1990?", "What about Paris?") made whole with the question before it; else the question."""
    about, conjunction = _WHAT_ABOUT.match(question), _AND.match(question)
    opening = about or conjunction
    fragment = (question[opening.end() :] if opening else question).strip(" ?.!")
    if len(earlier) > _EARLIER_MAX_CHARS or not fragment:
        return question
    first, _, rest = fragment.partition(" ")
    has_preposition = bool(rest) and first.casefold() in _PREPOSITIONS
    value = rest if has_preposition else fragment
    if not about:
        is_name = question.endswith("?") and _is_english(earlier) and _is_one_name(value)
        if not is_fragment(fragment.split()) or not (conjunction or has_preposition or is_name):
            return question
    if swapped := _swapped(earlier, first.casefold() if has_preposition else "", value):
        return swapped
    return f"{earlier.rstrip(' ?.!')} {first.lower()} {rest}?" if has_preposition else _with(question, earlier)


def _is_english(question: str) -> bool:
    words = split_words(question)
    return any(word.text in _ENGLISH_ONLY for word in words) or any(word.key in WH_WORDS for word in words[:1])


def _is_one_name(value: str) -> bool:
    return any(name.text == value.removeprefix("the ") for name in names(f"about {value}"))


def _swapped(earlier: str, preposition: str, value: str) -> str:
    """The earlier question with `value` in the place of its only thing of that kind; empty where there is no such."""
    if YEAR.fullmatch(value):
        slots = [match.span() for match in YEAR.finditer(earlier)]
    elif _is_one_name(value) or QUOTED.fullmatch(value):
        slots = [(name.start, name.end) for name in names(_masked(earlier, literal="q"))]
    else:
        slots = []
    if preposition:
        slots = [slot for slot in slots if _word_before(earlier[: slot[0]].removesuffix("the ")) == preposition]
    if len(slots) > 1:
        slots = [slot for slot in slots if (" " in earlier[slice(*slot)]) == (" " in value)]
    if len(slots) != 1:
        return ""
    start, end = slots[0]
    before = earlier[:start].removesuffix("the ") if value.startswith("the ") else earlier[:start]
    return before + value + earlier[end:]
