"""Conversation: a question that refers back comes to stand alone; any other stays as it is."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.conversation import last_question, resolve, standalone_question
from deployments.errors import InvalidInput
from deployments.names import content_words, names
from deployments.parsing import ParsingConfig

PIECES = (
    *("it ", "its ", "It is ", "he ", "her ", "this ", "that was ", "And ", "What about ", "Why", "who ", "Who wrote "),
    *(
        "the ",
        "of ",
        "of the ",
        "Ann ",
        "Lee's ",
        "E. ",
        "1999 ",
        "in ",
        "and ",
        "? ",
        ". ",
        ", ",
        '"',
        '"a b" ',
        "it ",
    ),
    *("tell me ", "what is ", "source:x ", "year:>= ", "ed ", "'s ", "\ud800", "`", "a@", "a.bc", "That's a. "),
)
TEXTS = st.text() | st.lists(st.sampled_from(PIECES)).map("".join)


def conversation(*turns: str) -> list[dict[str, str]]:
    """Messages of a user and, where a turn opens with "A: ", of the assistant."""
    return [
        {"role": "assistant", "content": turn.removeprefix("A: ")}
        if turn.startswith("A: ")
        else {"role": "user", "content": turn}
        for turn in turns
    ]


class TestLastQuestion:
    def test_it_is_the_last_user_message(self) -> None:
        messages = [
            {"role": "system", "content": "Be brief."},
            *conversation("First?", "A: Yes.", "Second?", "A: Let me think."),
        ]
        assert last_question(messages) == "Second?"

    @pytest.mark.parametrize("messages", [[], [{"role": "system", "content": "Be brief."}]])
    def test_a_conversation_without_a_user_is_refused(self, messages: list[dict[str, str]]) -> None:
        with pytest.raises(InvalidInput, match="user"):
            last_question(messages)
        with pytest.raises(InvalidInput, match="user"):
            standalone_question(messages)


class TestPronouns:
    @pytest.mark.parametrize(
        ("turns", "standalone"),
        [
            (("What is the Eiffel Tower?", "How tall is it?"), "How tall is the Eiffel Tower?"),
            (("Who is Marie Curie?", "When was she born?"), "When was Marie Curie born?"),
            (("Who is Marie Curie?", "Who was her husband?"), "Who was Marie Curie's husband?"),
            (("Who is Marie Curie?", "Who taught her?"), "Who taught Marie Curie?"),
            (('Who wrote "Dear Brother"?', "When was it written?"), "When was Dear Brother written?"),
            (("Where was Einstein born?", "When did he die?"), "When did Einstein die?"),
            (("How does photosynthesis work?", "Where does it happen?"), "Where does photosynthesis happen?"),
            (("Who invented the telephone?", "When was it patented?"), "When was the telephone patented?"),
            (("Why is the sky blue?", "Is it blue on Mars?"), "Is the sky blue on Mars?"),
            (("When was the telephone invented?", "By whom was it made?"), "By whom was the telephone made?"),
            (("How do I install docker?", "How do I remove it?"), "How do I remove docker?"),
            (("What are black holes?", "How do they form?"), "How do black holes form?"),
            (("Tell me about black holes", "How do they form?"), "How do black holes form?"),
            (("black holes", "How do they form?"), "How do black holes form?"),
            (("Show me the open tickets.", "Who filed them?"), "Who filed the open tickets?"),
            (("List all employees.", "Who hired them?"), "Who hired all employees?"),
            (("Find documents on tax.", "Who wrote them?"), "Who wrote documents on tax?"),
            (("Please give us an example.", "Is it good?"), "Is an example good?"),
            (("show business", "Is it hard?"), "Is show business hard?"),
            (("list comprehension", "Is it slow?"), "Is list comprehension slow?"),
            (("What is Python?", "What is the name of its creator?"), "What is the name of Python's creator?"),
            (("What is Python?", "What is the best way to install it?"), "What is the best way to install Python?"),
            (("What is entropy?", "What is an example of this?"), "What is an example of entropy?"),
            (("What is entropy?", "Who came up with that?"), "Who came up with entropy?"),
            (("What is Jaws?", "Who directed this film?"), "Who directed this film? (Jaws)"),
            (("What is Jaws?", "It was directed by whom?"), "Jaws was directed by whom?"),
            (("What are black holes?", "They form how?"), "Black holes form how?"),
        ],
    )
    def test_the_first_one_is_replaced_by_what_the_turn_before_names(
        self, turns: tuple[str, ...], standalone: str
    ) -> None:
        assert standalone_question(conversation(*turns)) == standalone

    @pytest.mark.parametrize(
        ("turns", "standalone"),
        [
            (("Who founded Microsoft and Apple?", "When were they founded?"), "When were Microsoft and Apple founded?"),
            (("Who saw Rome, Paris and the Hague?", "Are they old?"), "Are Rome, Paris and the Hague old?"),
            (("Compare plan A and plan B.", "Which of them is cheaper?"), "Which of plan A and plan B is cheaper?"),
            (("What is the difference between TCP and UDP?", "Are they fast?"), "Are TCP and UDP fast?"),
            (("What is the difference between cats and dogs?", "Are they big?"), "Are cats and dogs big?"),
            (
                ("What is the difference between cats and dogs?", "Is it big?"),
                "Is the difference between cats and dogs big?",
            ),
            (("Tell me about cats and dogs.", "What is their diet?"), "What is cats and dogs's diet?"),
            (("Tell me about cats and what eats mice.", "What do they eat?"), "What do cats eat?"),
            (('Who wrote "emma" and "jaws"?', "When were they written?"), 'When were "emma" and "jaws" written?'),
            (("Who wrote Pride and Prejudice?", "When was it made?"), "When was Pride and Prejudice made?"),
            (("Who built it?", "A: Ann Lee and Bob Ray.", "Are they old?"), "Are Ann Lee and Bob Ray old?"),
            (("Who founded Apple and who is Ann?", "Are they old?"), "Are Apple old?"),
        ],
    )
    def test_none_of_several_things_is_lost(self, turns: tuple[str, ...], standalone: str) -> None:
        assert standalone_question(conversation(*turns)) == standalone

    def test_a_list_that_is_too_long_to_be_repeated_is_cut(self) -> None:
        cities = [f"City{number}" for number in range(40)]
        resolved = resolve("Are they old?", [f"Who saw {', '.join(cities)} and Rome?"])
        assert resolved.endswith("City39 and Rome old?")
        assert len(resolved) < 150

    @pytest.mark.parametrize(
        ("question", "standalone"),
        [
            ("That's great, thanks. How old is it?", "That's great, thanks. How old is Python?"),
            ("Can I, e.g., sell 3.5 copies of it?", "Can I, e.g., sell 3.5 copies of Python?"),
            ("Who wrote to me@x.org about it?", "Who wrote to me@x.org about Python?"),
        ],
    )
    def test_what_stands_around_it_stays(self, question: str, standalone: str) -> None:
        assert resolve(question, ["What is Python?"]) == standalone

    def test_only_the_first_one_is_replaced(self) -> None:
        resolved = resolve("How tall is it and when was it built?", ["What is the Eiffel Tower?"])
        assert resolved == "How tall is the Eiffel Tower and when was it built?"

    @pytest.mark.parametrize(
        ("turns", "standalone"),
        [
            (("What is Ray Serve?", "Who wrote Emma Woodhouse?", "Is it old?"), "Is Emma Woodhouse old?"),
            (("Who is Ann Lee?", "How old is she?", "Where does she live?"), "Where does Ann Lee live?"),
            (("Who is Ann Lee?", "A: Bob Ray knows.", "Where does she live?"), "Where does Ann Lee live?"),
            (("Hello!", "A: Welcome to Berlin Zoo.", "How big is it?"), "How big is Berlin Zoo?"),
        ],
    )
    def test_the_latest_turn_of_the_user_counts_most_and_an_answer_least(
        self, turns: tuple[str, ...], standalone: str
    ) -> None:
        assert standalone_question(conversation(*turns)) == standalone

    @pytest.mark.parametrize(
        ("turns", "standalone"),
        [
            (("Who directed Big Gap?", "Where was she born?"), "Where was the person who directed Big Gap born?"),
            (("Who directed Big Gap?", "A: By Ann Lee.", "Where was she born?"), "Where was Ann Lee born?"),
            (
                ("Who directed Big Gap?", "A: Ann Lee and Bob Ray.", "Where was she born?"),
                "Where was the person who directed Big Gap born?",
            ),
            (("Who is the director of Big Gap?", "Is he old?"), "Is the director of Big Gap old?"),
            (("Who directed Big Gap?", "When was it made?"), "When was Big Gap made?"),
        ],
    )
    def test_a_person_may_be_the_answer_to_the_question_before(self, turns: tuple[str, ...], standalone: str) -> None:
        assert standalone_question(conversation(*turns)) == standalone


class TestFragments:
    @pytest.mark.parametrize(
        ("turns", "standalone"),
        [
            (("What is the population of London?", "What about Paris?"), "What is the population of Paris?"),
            (("What is the population of London?", "And Paris?"), "What is the population of Paris?"),
            (("What is the population of London?", "Paris?"), "What is the population of Paris?"),
            (("population of London", "Paris?"), "population of Paris"),
            (('Who wrote "Big Gap"?', 'And "Dear Brother"?'), 'Who wrote "Dear Brother"?'),
            (("What was built in 1980 in Rome?", "And in 1990?"), "What was built in 1990 in Rome?"),
            (("What was built in 1980 in Rome?", "And in Paris?"), "What was built in 1980 in Paris?"),
            (("When did Ann Lee visit Paris?", "What about Bob Ray?"), "When did Bob Ray visit Paris?"),
            (("What says x.org/Rome on Paris?", "And London?"), "What says x.org/Rome on London?"),
        ],
    )
    def test_a_thing_takes_the_place_of_the_one_of_its_kind(self, turns: tuple[str, ...], standalone: str) -> None:
        assert standalone_question(conversation(*turns)) == standalone

    @pytest.mark.parametrize(
        ("turns", "standalone"),
        [
            (("What is the population of London?", "And in 1990?"), "What is the population of London in 1990?"),
            (("When was Napoleon born?", "And in Paris?"), "When was Napoleon born in Paris?"),
            (("How does it work in Python?", "For beginners?"), "How does it work in Python for beginners?"),
        ],
    )
    def test_a_circumstance_is_added_to_the_question_before(self, turns: tuple[str, ...], standalone: str) -> None:
        assert standalone_question(conversation(*turns)) == standalone

    @pytest.mark.parametrize("fragment", ["Why?", "And why?", "Since when?", "How so?", "Why is that?", "Who else?"])
    def test_a_question_word_alone_keeps_both_texts(self, fragment: str) -> None:
        assert resolve(fragment, ["Is the sky blue?"]) == f"{fragment} (Is the sky blue?)"

    @pytest.mark.parametrize(
        ("earlier", "fragment"),
        [
            ("How long do dogs live?", "What about cats?"),
            ("When did Napoleon invade Russia?", "What about Spain?"),
            ("What is the capital of Peru?", "What about when it rains?"),
        ],
    )
    def test_what_fits_no_place_keeps_both_texts(self, earlier: str, fragment: str) -> None:
        assert earlier in resolve(fragment, [earlier])
        assert fragment.rpartition(" ")[2] in resolve(fragment, [earlier])

    def test_a_question_too_long_to_repeat_is_not_repeated(self) -> None:
        assert resolve("Why?", ["Is the sky " + "very " * 100 + "blue?"]) == "Why?"

    def test_it_is_completed_with_the_question_before_as_that_stands_alone(self) -> None:
        turns = conversation("Who is Marie Curie?", "When was she born?", "And where?")
        assert standalone_question(turns) == "And where? (When was Marie Curie born?)"


class TestStandingAlone:
    @pytest.mark.parametrize(
        "question",
        [
            "What is  Rust ?",
            "And who directed Jaws?",
            "Why do cats purr when they are happy?",
            "Did Apple change its logo?",
            "I like Ray Serve. How fast is it?",
            "Is it true that cats purr?",
            "How long does it take to learn Rust?",
            "What time is it?",
            "Is it raining?",
            "What happened this year?",
            "Who founded the company that made Jaws?",
            "Who wrote It?",
            'Who wrote "this and that"?',
            "raglane install",
            "",
            "source:wiki",
            "a" * 9000,
        ],
    )
    def test_a_question_that_refers_to_nothing_before_it_is_returned_untouched(self, question: str) -> None:
        assert standalone_question(conversation("What is the Eiffel Tower?", question)) == question

    @pytest.mark.parametrize(
        ("earlier", "question"),
        [
            ("Was ist die Hauptstadt von Frankreich?", "Und von Spanien?"),
            ("Was ist die Hauptstadt von Frankreich?", "Und Spanien?"),
            ("Quelle est la capitale de la France ?", "Et l'Espagne ?"),
            ("Is Parijs groot?", "En Rome?"),
        ],
    )
    def test_so_is_one_that_follows_one_in_another_language(self, earlier: str, question: str) -> None:
        assert resolve(question, [earlier]) == question

    @pytest.mark.parametrize(
        "question",
        [
            "Can I write to it@company.com?",
            "Summarise https://www.apple.com/it/shop for me",
            "What does `this.state` do in React?",
            "What does `return this` do?",
            "What does this.state do in React?",
            "Is its.py a file of Django?",
            "That's great, thanks. What is the capital of Spain?",
            "That was good! What is the capital of Spain?",
        ],
    )
    def test_so_is_one_whose_pronoun_is_part_of_an_address_of_code_or_of_a_remark(self, question: str) -> None:
        assert standalone_question(conversation("What is Python?", question)) == question

    @pytest.mark.parametrize("question", ["How tall is it?", "What about Paris?", "Why?", "And in 1990?"])
    def test_so_is_one_with_nothing_before_it(self, question: str) -> None:
        assert standalone_question(conversation(question)) == question
        assert resolve(question, []) == question

    @pytest.mark.parametrize("earlier", ["How is it?", "Hello!", "x" * 5000, "", "year:>= what"])
    def test_so_is_one_whose_turns_before_name_nothing(self, earlier: str) -> None:
        assert standalone_question(conversation(earlier, "How tall is it?")) == "How tall is it?"

    def test_what_was_said_long_ago_is_forgotten(self) -> None:
        turns = ["What is the Eiffel Tower?", *["How nice!"] * 20, "How tall is it?"]
        assert standalone_question(conversation(*turns)) == "How tall is it?"


class TestInlineFiltersOfTurns:
    def test_each_turn_keeps_its_own(self) -> None:
        turns = conversation("What is Rust? source:book", "How fast is it? year:2001 source:wiki")
        assert standalone_question(turns) == "How fast is Rust? year:2001 source:wiki"

    def test_they_are_text_when_switched_off(self) -> None:
        turns = conversation("source:book", "How fast is it? source:wiki")
        assert standalone_question(turns) == "How fast is it? source:wiki"
        config = ParsingConfig(inline_filters=False)
        assert standalone_question(turns, config) == "How fast is source:book? source:wiki"


class TestNames:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("Who directed the film Big Stone Gap?", ["Big Stone Gap"]),
            ("Who wrote Bridge on the River Kwai?", ["Bridge on the River Kwai"]),
            ("Was Alexander the Great in Rome?", ["Alexander the Great", "Rome"]),
            ("Are Ann Lee and E. B. White related?", ["Ann Lee", "E. B. White"]),
            ("Ann Lee's first novel", ["Ann Lee"]),
            ("the 2007 Golden Shoe, in 1990 Ann Lee", ["2007 Golden Shoe", "Ann Lee"]),
            ("Is Apollo 11 by Smith & Sons?", ["Apollo 11", "Smith & Sons"]),
            ("Python is fast, iPhone is not", ["iPhone"]),
            ("Germany's capital", ["Germany"]),
            ("What did American actors do in March 2020?", []),
            ("What Is The Capital Of The World?", []),
            ("WHO IS THE KING", []),
            ("what is paris", []),
            ("", []),
        ],
    )
    def test_they_are_read_from_capitals(self, text: str, found: list[str]) -> None:
        assert [name.text for name in names(text)] == found

    @given(TEXTS)
    def test_each_stands_in_the_text_where_it_says(self, text: str) -> None:
        found = names(text)
        assert all(text[name.start : name.end] == name.text for name in found)
        assert all(before.end < after.start for before, after in pairwise(found))


def test_content_words_are_those_that_say_what_a_text_is_about() -> None:
    assert content_words("What's the film that Ann's sister didn't like?") == ["film", "Ann's", "sister"]


@given(st.lists(TEXTS, max_size=4), TEXTS, TEXTS)
def test_any_text_can_be_resolved_against_any_other(earlier: list[str], question: str, answer: str) -> None:
    assert isinstance(resolve(question, earlier, answer), str)
    assert isinstance(standalone_question(conversation(*earlier, f"A: {answer}", question)), str)


@given(st.lists(st.sampled_from(PIECES)).map("".join), st.lists(st.sampled_from(PIECES)).map("".join))
def test_no_word_that_says_what_a_question_is_about_is_lost(earlier: str, question: str) -> None:
    assert set(content_words(question)) <= set(content_words(resolve(question, [earlier])))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("piece", PIECES)
def test_turns_of_full_length_that_repeat_one_piece_are_read(piece: str) -> None:
    for length in (1000, 8192):
        turn = (piece * length)[:length]
        messages = conversation(*[turn] * 8, f"A: {turn}", turn)
        assert standalone_question(messages)
