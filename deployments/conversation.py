"""Reference resolution by rule: what a text names, and how a question that refers back comes to stand alone.

The rules know English. A question that none of them understands stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from deployments.errors import InvalidInput
from deployments.parsing import (
    AUXILIARIES,
    FUNCTION_WORDS,
    QUOTED,
    WH_WORDS,
    ParsingConfig,
    clean_question,
    quoted_spans,
    take_filters,
    word_set,
)

# What was said longer ago is not what a pronoun stands for.
_TURNS_READ = 6
# What is longer is a text that somebody pasted, not a question.
_TURN_MAX_CHARS = 1000
_ANSWER_CHARS_READ = 2000
# A question has one or two pronouns; a text full of them is no question.
_PRONOUNS_READ = 5
# What is longer says too much to be repeated inside another question.
_TOPIC_MAX_CHARS = 120
_EARLIER_MAX_CHARS = 300
_FRAGMENT_MAX_WORDS = 6

_WH = "|".join(sorted(WH_WORDS))
_AUX = "|".join(sorted(AUXILIARIES))
_ASKING_WORDS = WH_WORDS | AUXILIARIES
_BE = word_set("is are was were isn't aren't wasn't weren't")
_PREPOSITIONS = word_set("""
    of in on at by for with from to into about as like over under between among through during before after against
    within without around near since until than
""")

_WORD = re.compile(r"[^\W_](?:[\w'’&./-]*\w)?")
_ABBREVIATIONS = word_set("jr sr st dr mr mrs ms prof mt ft gen sgt capt rev hon vs no inc ltd co corp vol")
_SENTENCE_OPENERS = FUNCTION_WORDS | word_set(
    "name tell list give compare explain describe define find show besides according hello thanks"
)
_SMALL_TALK = word_set("hi hello hey thanks thank ok okay yes yeah no sure great good cool nice please sorry")
_DATE_WORDS = word_set("""
    january february march april may june july august september october november december
    monday tuesday wednesday thursday friday saturday sunday
""")
# Lower-case words inside a name; the prepositions only before "the", as in "Bridge on the River Kwai".
_PARTICLES = word_set("of the de la le du des von van der den di da del della bin ibn ben al el ap y")
_PREPOSITIONS_IN_NAMES = word_set("to from on of")
_TIME_PREPOSITIONS = word_set("in since by during of from until till before after around")
_YEAR = re.compile(r"\b(?:1[0-9]|20)[0-9]{2}\b")
_NUMBER = re.compile(r"[0-9]{1,4}")
_DEMONYM = re.compile(r"(?:ian|ean|can|ish|ese|nch|lsh)$")

_PRONOUN = re.compile(
    r"(?<![\w'’-])(?:it|its|they|them|their|theirs|he|him|his|she|her|hers|this|that|these|those)(?![\w-])",
    re.IGNORECASE,
)
_POSSESSIVES = word_set("its their theirs his hers")
_PERSONS = word_set("he him his she her hers")
_DEMONSTRATIVES = word_set("this that these those")
_TIME_WORDS = word_set("day days week weekend month year years decade century morning evening night season time moment")
_CLAUSE_BREAK = re.compile(
    rf"[,;:.?!]|\b(?:and|but|or|because|if|that|while|since|after|before|so|as|than|until|although|though|{_WH})\b",
    re.IGNORECASE,
)
_DETERMINER = re.compile(
    rf"\b(?:the|an?|any|some|each|every|my|your|our|most|all|many|{_AUX})\s+(?=([\w'’-]+))", re.IGNORECASE
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
    rf"(?:how (?:much|many|long|far|often|old|come)|(?:what|which) (?:else|ones?|year|time)|since when|{_WH})"
    r"(?: (?:exactly|else|then|not|so))?(?: (?:is|was|did|does))?(?: (?:that|this))?(?: so)?\s*[?!.]*",
    re.IGNORECASE,
)

_REQUEST = re.compile(
    r"(?:(?:please|hi|hello|hey)[\s,]+)?(?:(?:can|could|would|will) you\s+(?:please\s+)?)?"
    r"(?:tell (?:me|us)(?: more)?(?: about)?|explain(?: to me)?|describe|define|summari[sz]e"
    r"|i(?: want|'d like| would like| need) to know(?: more)?(?: about)?)\s+",
    re.IGNORECASE,
)
_WHAT_IS = re.compile(r"(?:what|which|who)(?:\s+(?:is|was|are|were)|['’]s|['’]re)\s+", re.IGNORECASE)
_WHO_IS = re.compile(r"who(?:\s+(?:is|was|are|were)|['’]s)\s+", re.IGNORECASE)
_WHO_DOES = re.compile(rf"who\s+(?:has\s+|had\s+)?(?!(?:{_AUX})\b)\w[^?,;]*", re.IGNORECASE)
_QUESTION_HEAD = re.compile(
    rf"(?:(?P<wh>{_WH})\b(?:\s+(?!(?:{_AUX})\b)[\w'’-]+){{0,3}}?\s+)?(?P<aux>{_AUX})\s+"
    r"(?:(?:i|you|we|one|people)\s+[\w'’-]+\s+)?|(?:" + _WH + r")\s+[\w'’-]+\s+",
    re.IGNORECASE,
)
_NOUN_PHRASE_ENDS = re.compile(
    r"[,;:?!]|\.(?:\s|$)|\s(?:and|but|or|because|if|that|while|since|after|before|so|when|where|who|which|whose|why|how"
    r"|in|on|at|by|with|from|during|than|as)\s",
    re.IGNORECASE,
)
_PARTICIPLE = re.compile(
    r"\w+ed|born|made|built|found|held|written|known|shown|sold|paid|won|lost|done|taken|given|grown|drawn|spoken|set",
    re.IGNORECASE,
)
_AND_ANOTHER = re.compile(rf" and (?:{_WH}|{_AUX})\b", re.IGNORECASE)

_DEFAULTS = ParsingConfig()


@dataclass(frozen=True, slots=True)
class Mention:
    """A name in a text: `text` is what stands from `start` to `end`, without a possessive's ending."""

    text: str
    start: int
    end: int


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
    earlier = _standing_alone((messages[number].get("content", "") for number in before[-_TURNS_READ:]), config)
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
        topic = _topic(pronoun[0].casefold(), earlier, answer[:_ANSWER_CHARS_READ])
        return _replaced(question, pronoun, topic) if topic else question
    return _completed(question, earlier[-1]) if earlier else question


def names(text: str) -> list[Mention]:
    """The capitalised names of a text in their order: "Big Stone Gap", "the River Kwai" without "the", "Paris".

    A capitalised word that opens a sentence is no name on its own. Empty where capitals mean nothing: in a title, or in
    upper case.
    """
    words = _words(text)
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
    return [word for match in _WORD.finditer(text) if _key(word := match[0]) not in FUNCTION_WORDS]


@dataclass(frozen=True, slots=True)
class _Word:
    """`breaks` tells whether punctuation parts the word from the one before it."""

    text: str
    start: int
    end: int
    breaks: bool
    opens_sentence: bool

    @property
    def key(self) -> str:
        return _key(self.text)

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


def _key(word: str) -> str:
    """The word in lower case, without a possessive's or a verb's ending: "Who's" → "who"."""
    lower = word.casefold().replace("’", "'")
    return lower if lower in AUXILIARIES else lower.partition("'")[0]


def _words(text: str) -> list[_Word]:
    words: list[_Word] = []
    for match in _WORD.finditer(text):
        gap = text[words[-1].end if words else 0 : match.start()]
        if words and "." in gap and _is_abbreviation(words[-1].text):
            gap = gap.replace(".", "", 1)
        opens_sentence = not words or any(mark in gap for mark in ".?!:")
        words.append(_Word(match[0], *match.span(), gap.strip() not in ("", "&", "'", "’"), opens_sentence))
    return words


def _is_abbreviation(word: str) -> bool:
    return len(word) == 1 or "." in word or word.casefold() in _ABBREVIATIONS


def _capitals_mean_nothing(words: list[_Word]) -> bool:
    inner = [word for word in words if not word.opens_sentence and word.key in FUNCTION_WORDS and word.key != "i"]
    if len(inner) > 2:
        return 2 * sum(word.text[0].isupper() for word in inner) > len(inner)
    return len(words) > 3 and all(word.text.isupper() for word in words)


def _end_of_name(words: list[_Word], first: int) -> int:
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


def _is_name(words: list[_Word], first: int, last: int) -> bool:
    run = words[first : last + 1]
    if all(word.key in _DATE_WORDS or word.text.isdigit() for word in run):
        return False
    qualifies_noun = last + 1 < len(words) and not words[last + 1].breaks and words[last + 1].key not in FUNCTION_WORDS
    if qualifies_noun and _DEMONYM.search(run[-1].key):
        return False
    if len(run) > 1 or run[0].has_capitals_inside:
        return True
    return run[0].is_possessive or not run[0].opens_sentence


def _mention(words: list[_Word], first: int, last: int, text: str) -> Mention:
    end = words[last].end - (2 if words[last].is_possessive else 0)
    # The year of an event is part of its name, the year in "In 1990 Ann Smith ..." is not.
    has_year = first > 0 and not words[first].breaks and _YEAR.fullmatch(words[first - 1].text)
    if has_year and not (first > 1 and words[first - 2].key in _TIME_PREPOSITIONS):
        first -= 1
    start = words[first].start
    return Mention(text[start:end], start, end)


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


def _masked(text: str) -> str:
    """The text with every quoted phrase made one capitalised word of the same length."""
    return QUOTED.sub(lambda match: "Q" * len(match[0]), text)


def _reference(question: str) -> re.Match[str] | None:
    """The first pronoun that stands for something outside the question."""
    masked = _masked(question)
    for pronoun in islice(_PRONOUN.finditer(masked), _PRONOUNS_READ):
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
    return not _WHAT_IS.match(before) and _word_before(before) != "of" and _names_something(before)


def _names_something(text: str) -> bool:
    if names(text):
        return True
    return any(_key(match[1]) not in FUNCTION_WORDS for match in _DETERMINER.finditer(text))


def _is_possessive(text: str, pronoun: re.Match[str]) -> bool:
    word = pronoun[0].casefold()
    if word == "her":
        return _word_after(text, pronoun.end()) not in FUNCTION_WORDS | {""}
    return word in _POSSESSIVES


def _word_after(text: str, position: int) -> str:
    """Key of the word that follows without punctuation between, or an empty string."""
    match = _WORD.search(text, position)
    return _key(match[0]) if match and not text[position : match.start()].strip() else ""


def _word_before(text: str) -> str:
    words = text[-40:].split()
    return _key(words[-1]) if words else ""


def _topic(pronoun: str, earlier: Sequence[str], answer: str) -> str:
    """What the pronoun stands for: the topic of the latest turn that has one; empty where none has."""
    for turn in reversed(earlier[-_TURNS_READ:]):
        topic = ""
        if pronoun in _PERSONS and (topic := _person_asked_for(turn)) and turn is earlier[-1]:
            topic = _only_new_name(answer, turn) or topic
        topic = topic or _topic_of(turn)
        if 0 < len(topic) <= _TOPIC_MAX_CHARS:
            return topic
    named = sorted(names(answer), key=lambda name: " " not in name.text)
    return named[0].text if named else ""


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
        return _with_article(several_words[0], turn)
    if quoted := quoted_spans(turn):
        return turn[quoted[0][0] + 1 : quoted[0][1] - 1].strip(" .,;?!")
    if named and not _WHAT_IS.match(turn):
        return _with_article(named[0], turn)
    return _object(turn) or (_with_article(named[0], turn) if named else "")


def _with_article(name: Mention, turn: str) -> str:
    return f"the {name.text}" if turn[: name.start].endswith("the ") else name.text


def _object(turn: str) -> str:
    """The noun phrase that a request or a question is about; empty where no rule finds one."""
    if request := _REQUEST.match(turn):
        return _if_telling(_noun_phrase(turn[request.end() :]))
    if what_is := _WHAT_IS.match(turn):
        return _if_telling(_noun_phrase(turn[what_is.end() :]))
    if head := _QUESTION_HEAD.match(turn):
        phrase = _noun_phrase(turn[head.end() :])
        return _if_telling(_without_predicate(phrase, (head["wh"] or "").casefold(), (head["aux"] or "").casefold()))
    # A few words without a verb are a topic themselves.
    words = [word for word in turn.rstrip(".?! ").split() if _key(word.strip(",.!")) not in _SMALL_TALK]
    return _if_telling(" ".join(words)) if _is_fragment(words) else ""


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
    return "" if not content_words(phrase) or _PRONOUN.search(phrase) else phrase


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
        is_name = question.endswith("?") and _is_one_name(value)
        if not _is_fragment(fragment.split()) or not (conjunction or has_preposition or is_name):
            return question
    if swapped := _swapped(earlier, first.casefold() if has_preposition else "", value):
        return swapped
    return f"{earlier.rstrip(' ?.!')} {first.lower()} {rest}?" if has_preposition else _with(question, earlier)


def _is_fragment(words: Sequence[str]) -> bool:
    """Tell whether the words are too few for a question and hold no verb that asks one."""
    return len(words) <= _FRAGMENT_MAX_WORDS and not any(_key(word) in _ASKING_WORDS for word in words)


def _is_one_name(value: str) -> bool:
    return any(name.text == value.removeprefix("the ") for name in names(f"about {value}"))


def _swapped(earlier: str, preposition: str, value: str) -> str:
    """The earlier question with `value` in the place of its only thing of that kind; empty where there is no such."""
    if _YEAR.fullmatch(value):
        slots = [match.span() for match in _YEAR.finditer(earlier)]
    elif _is_one_name(value) or QUOTED.fullmatch(value):
        slots = [(name.start, name.end) for name in names(_masked(earlier))]
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
