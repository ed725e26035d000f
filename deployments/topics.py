"""What a turn of a conversation is about, so that a later pronoun can be replaced by it.

The rules know English.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from deployments.names import Mention, content_words, names, word_key
from deployments.parsing import AUX, AUXILIARIES, WH, WH_WORDS, quoted_spans, word_set

# What was said longer ago is not what a pronoun stands for.
TURNS_READ = 6
# What is longer says too much to be repeated inside another question.
_TOPIC_MAX_CHARS = 120
_FRAGMENT_MAX_WORDS = 6

_ASKING_WORDS = WH_WORDS | AUXILIARIES
_BE = word_set("is are was were isn't aren't wasn't weren't")
_SMALL_TALK = word_set("hi hello hey thanks thank ok okay yes yeah no sure great good cool nice please sorry")

PRONOUN = re.compile(
    r"(?<![\w'’-])(?:it|its|they|them|their|theirs|he|him|his|she|her|hers|this|that|these|those)(?![\w-])",
    re.IGNORECASE,
)
_PLURALS = word_set("they them their theirs these those")
_PERSONS = word_set("he him his she her hers")

# "List employees" asks for something, "list comprehension" and "show business" are things themselves.
_REQUEST = re.compile(
    r"(?:(?:please|hi|hello|hey)[\s,]+)?(?:(?:can|could|would|will) you\s+(?:please\s+)?)?"
    r"(?:tell (?:me|us)(?: more)?(?: about)?|explain(?: to me)?|describe|define|summari[sz]e"
    r"|i(?: want|'d like| would like| need) to know(?: more)?(?: about)?"
    r"|(?P<command>compare|(?:show|list|give|find) (?:me|us)"
    r"|(?:show|list|give|find)(?=\s+(?:(?:all|the|an?|any|some|every|each|my|your|our)\s|[\w-]*[^\W_s]s\b))))\s+",
    re.IGNORECASE,
)
WHAT_IS = re.compile(r"(?:what|which|who)(?:\s+(?:is|was|are|were)|['’]s|['’]re)\s+", re.IGNORECASE)
_WHO_IS = re.compile(r"who(?:\s+(?:is|was|are|were)|['’]s)\s+", re.IGNORECASE)
_WHO_DOES = re.compile(rf"who\s+(?:has\s+|had\s+)?(?!(?:{AUX})\b)\w[^?,;]*", re.IGNORECASE)
_QUESTION_HEAD = re.compile(
    rf"(?:(?P<wh>{WH})\b(?:\s+(?!(?:{AUX})\b)[\w'’-]+){{0,3}}?\s+)?(?P<aux>{AUX})\s+"
    r"(?:(?:i|you|we|one|people)\s+[\w'’-]+\s+)?|(?:" + WH + r")\s+[\w'’-]+\s+",
    re.IGNORECASE,
)
_NOUN_PHRASE_ENDS = re.compile(
    r"[,;:?!]|\.(?:\s|$)|\s(?:and|but|or|because|if|that|while|since|after|before|so|when|where|who|which|whose|why|how"
    r"|in|on|at|by|with|from|during|than|as)\s",
    re.IGNORECASE,
)
# What stands before the last of a list, or inside of a title: "Pride and Prejudice".
_CONJUNCTION = re.compile(r",? (?:and|or) (?:the )?")
_COMMA = re.compile(r", (?:the )?")
_BETWEEN = re.compile(r"(?:.*\s)?between\s+", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[,;:?!]|\.(?:\s|$)")
_PARTICIPLE = re.compile(
    r"\w+ed|born|made|built|found|held|written|known|shown|sold|paid|won|lost|done|taken|given|grown|drawn|spoken|set",
    re.IGNORECASE,
)
_AND_ANOTHER = re.compile(rf" and (?:{WH}|{AUX})\b", re.IGNORECASE)


def topic_for(pronoun: str, earlier: Sequence[str], answer: str) -> str:
    """What the pronoun (in lower case) stands for: the topic of the latest turn that has one; empty where none has.

    `earlier` holds the turns, oldest first; `answer` is the last answer, read where no turn has a topic, and for the
    person that the last turn asks for.
    """
    for turn in reversed(earlier[-TURNS_READ:]):
        topic = ""
        if pronoun in _PERSONS and (topic := _person_asked_for(turn)) and turn is earlier[-1]:
            topic = _only_new_name(answer, turn) or topic
        topic = topic or (_several_things(turn) if pronoun in _PLURALS else "") or _topic_of(turn)
        if 0 < len(topic) <= _TOPIC_MAX_CHARS:
            return topic
    named = sorted(names(answer), key=lambda name: " " not in name.text)
    return _list_of(named[0], answer).text if named else ""


def is_fragment(words: Sequence[str]) -> bool:
    """Tell whether the words are too few for a question and hold no verb that asks one."""
    return len(words) <= _FRAGMENT_MAX_WORDS and not any(word_key(word) in _ASKING_WORDS for word in words)


def _person_asked_for(turn: str) -> str:
    """Who the answer to a who-question is, in the question's own words: "the person who wrote Emma"."""
    if is_who := _WHO_IS.match(turn):
        described = _noun_phrase(turn[is_who.end() :])
        is_name = any(name.text == described for name in names(f"is {described}"))
        return "" if is_name or not content_words(described) else described
    if does := _WHO_DOES.match(turn):
        clause = does[0][: another.start()] if (another := _AND_ANOTHER.search(does[0])) else does[0]
        return f"the person w{clause[1:].strip(' .!')}"
    return ""


def _only_new_name(answer: str, turn: str) -> str:
    """The answer's only name of several words that the question does not have; empty where there are more."""
    new = {name.text for name in names(answer) if " " in name.text and name.text.casefold() not in turn.casefold()}
    return new.pop() if len(new) == 1 else ""


def _topic_of(turn: str) -> str:
    named = names(turn)
    if several_words := [name for name in named if " " in name.text]:
        return _with_article(_list_of(several_words[0], turn), turn)
    if quoted := quoted_spans(turn):
        return turn[quoted[0][0] + 1 : quoted[0][1] - 1].strip(" .,;?!")
    if named and not WHAT_IS.match(turn):
        return _with_article(_list_of(named[0], turn), turn)
    return _object(turn) or (_with_article(named[0], turn) if named else "")


def _several_things(turn: str) -> str:
    """What "they" stands for rather than for a single name: what is to be listed, or things joined by "and"."""
    opening = _REQUEST.match(turn) or WHAT_IS.match(turn)
    rest = turn[opening.end() :] if opening else ""
    if opening and opening.groupdict().get("command") and (commanded := _if_telling(_commanded(rest))):
        return commanded
    for things in ([Mention(turn[start:end], start, end) for start, end in quoted_spans(turn)], names(turn)):
        single = set(things)
        if lists := [one for one in _lists(things, turn) if one not in single]:
            return _with_article(lists[0], turn)
    pair = _pair(rest)
    between = _BETWEEN.match(pair)
    return pair[between.end() :] if between else pair


def _lists(things: Sequence[Mention], text: str) -> list[Mention]:
    """The things in their order, those of one list as one: "Rome, Paris and London". None outgrows a topic."""
    found: list[Mention] = []
    is_list = False
    for thing in reversed(things):
        following = found[-1] if found else thing
        joins = _CONJUNCTION.fullmatch(text, thing.end, following.start)
        joins = joins or (_COMMA.fullmatch(text, thing.end, following.start) if is_list else None)
        is_list = joins is not None and following.end - thing.start <= _TOPIC_MAX_CHARS
        if is_list:
            found[-1] = Mention(text[thing.start : following.end], thing.start, following.end)
        else:
            found.append(thing)
    return found[::-1]


def _list_of(name: Mention, text: str) -> Mention:
    return next(one for one in _lists(names(text), text) if one.start <= name.start < one.end)


def _pair(text: str) -> str:
    """The two things that the text opens with: "TCP and UDP"; empty where it opens with one."""
    first = _noun_phrase(text)
    conjunction = _CONJUNCTION.match(text, len(first))
    second = _noun_phrase(text[conjunction.end() :]) if conjunction else ""
    if not conjunction or not second or not is_fragment(second.split()):
        return ""
    return _if_telling(text[: conjunction.end()] + second)


def _with_article(name: Mention, turn: str) -> str:
    return f"the {name.text}" if turn[: name.start].endswith("the ") else name.text


def _object(turn: str) -> str:
    """The noun phrase that a request or a question is about; empty where no rule finds one."""
    if request := _REQUEST.match(turn):
        rest = turn[request.end() :]
        return _if_telling((_commanded(rest) if request["command"] else "") or _noun_phrase(rest))
    if what_is := WHAT_IS.match(turn):
        rest = turn[what_is.end() :]
        pair = _pair(rest)
        return pair if _BETWEEN.match(pair) else _if_telling(_noun_phrase(rest))
    if head := _QUESTION_HEAD.match(turn):
        phrase = _noun_phrase(turn[head.end() :])
        return _if_telling(_without_predicate(phrase, (head["wh"] or "").casefold(), (head["aux"] or "").casefold()))
    # A few words without a verb are a topic themselves.
    words = [word for word in turn.rstrip(".?! ").split() if word_key(word.strip(",.!")) not in _SMALL_TALK]
    return _if_telling(" ".join(words)) if is_fragment(words) else ""


def _commanded(text: str) -> str:
    """All that is to be listed or compared; empty where the words are too many for that, or ask something."""
    end = _CLAUSE_END.search(text)
    phrase = (text[: end.start()] if end else text).strip()
    return phrase if is_fragment(phrase.split()) else ""


def _noun_phrase(text: str) -> str:
    end = _NOUN_PHRASE_ENDS.search(text)
    return (text[: end.start()] if end else text).strip()


def _without_predicate(phrase: str, wh: str, aux: str) -> str:
    """The subject without what it does or what is done to it: "the telephone invented" → "the telephone"."""
    subject, _, last = phrase.rpartition(" ")
    if not aux or not content_words(subject):
        return phrase
    if aux in _BE and wh in ("when", "where", "what", "which") and not _PARTICIPLE.fullmatch(last):
        return phrase
    return subject


def _if_telling(phrase: str) -> str:
    """The phrase, or nothing where it only refers to something itself."""
    return "" if not content_words(phrase) or PRONOUN.search(phrase) else phrase
