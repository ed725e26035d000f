"""Parsing: a raw question becomes a clean one with its filters, phrases and single questions, or a clear refusal."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.errors import InvalidInput
from deployments.filters import where_clause
from deployments.parsing import ParsingConfig, clean_question, parse_question

# Pieces of the grammar in every order find more than random letters do.
PIECES = (
    *("What is", "who", "And how", "cats", "A. B.", "?", "? ", "?!", "？", " ", '"', '"a b"', "“", "”", "«", "»"),
    *(
        "source:",
        "source:wiki",
        'title:"a b"',
        "year:>=2001",
        "year:2001..2002",
        "date:",
        "metadata.a:b",
        ":",
        "..",
        "\t",
    ),
)


@pytest.mark.parametrize(
    ("raw", "question"),
    [
        ("What is it?", "What is it?"),
        ("  What \t is\n\nit?  ", "What is it?"),
        ("What\x00is\x07it?", "What is it?"),
        ("Cafe\u0301", "Café"),
        ("a\u00a0b\u3000c", "a b c"),
        ("👩‍👩‍👧‍👦?", "👩‍👩‍👧‍👦?"),
    ],
)
def test_white_space_is_folded_control_characters_go_and_letters_are_composed(raw: str, question: str) -> None:
    assert parse_question(raw).text == question
    assert clean_question(raw, max_chars=100) == question


@pytest.mark.parametrize("raw", ["", "   ", "\n\t", "\x00\x01"])
def test_a_question_without_text_is_refused(raw: str) -> None:
    with pytest.raises(InvalidInput, match="empty"):
        parse_question(raw)


def test_marks_on_a_letter_beyond_what_any_script_has_are_left_out() -> None:
    # In order of their classes they would be thousands, after minutes.
    assert len(clean_question("a" + "\u0301\u0316" * 50_000 + "b", max_chars=8192)) <= 32


def test_megabytes_are_refused_without_being_cleaned() -> None:
    with pytest.raises(InvalidInput, match="the question has 800001 characters; shorten it to 8192"):
        clean_question("a" + "\u0301\u0316" * 400_000, max_chars=8192)


def test_a_question_is_measured_after_cleaning_and_a_longer_one_refused_with_both_lengths() -> None:
    config = ParsingConfig(question_max_chars=10)
    assert parse_question("  " + "a" * 10 + " \n", config).text == "a" * 10
    with pytest.raises(InvalidInput, match="11 characters; shorten it to 10"):
        parse_question("a" * 11, config)


@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join) | st.lists(st.sampled_from(PIECES)).map(" ".join))
@example('source:x "a year:2001 b" year:2002?')
def test_a_parsed_question_stays_as_it_is_and_its_questions_hold_all_of_it(raw: str) -> None:
    try:
        parsed = parse_question(raw)
    except InvalidInput:
        return
    again = parse_question(parsed.text)
    assert (again.text, again.questions, again.phrases) == (parsed.text, parsed.questions, parsed.phrases)
    assert not again.filter
    assert parsed.text == " ".join(parsed.text.split())
    assert not any(unicodedata.category(character) == "Cc" for character in parsed.text)
    assert "".join(parsed.questions).replace(" ", "") == parsed.text.replace(" ", "")
    assert 1 <= len(parsed.questions) <= ParsingConfig().max_questions


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece", [*PIECES, 'source:"', 'source:"a', "year:1? ", "a? B ", '"a ', "“a ", "?) ", "a:", "a."]
)
def test_a_question_of_full_length_that_repeats_one_piece_is_parsed_or_refused(piece: str) -> None:
    try:
        parsed = parse_question((piece * 8192)[:8192])
    except InvalidInput:
        return
    assert parsed.text


class TestInlineFilters:
    @pytest.mark.parametrize(
        ("raw", "text", "wanted"),
        [
            ("cats source:wiki", "cats", {"source": {"contains": "wiki"}}),
            ('title:"Big Cats" what do they eat?', "what do they eat?", {"title": {"contains": "Big Cats"}}),
            ("title:“Big Cats” cats", "cats", {"title": {"contains": "Big Cats"}}),
            ("cats document_id:2001", "cats", {"document_id": "2001"}),
            ("cats year:2001", "cats", {"year": 2001}),
            ("cats year:>=2001 year:<2010", "cats", {"year": {"gte": 2001, "lt": 2010}}),
            ("cats year:!=2001 year:>1990 year:<=2010", "cats", {"year": {"ne": 2001, "gt": 1990, "lte": 2010}}),
            ("cats year:2001..2010", "cats", {"year": {"gte": 2001, "lte": 2010}}),
            ("cats date:2020-01-01..2020-12-31", "cats", {"date": {"gte": "2020-01-01", "lte": "2020-12-31"}}),
            ("cats date:>=2020", "cats", {"date": {"gte": "2020"}}),
            ("cats date:2020-01", "cats", {"date": {"gte": "2020-01", "lt": "2020-02"}}),
            ("cats date:2020", "cats", {"date": {"gte": "2020", "lt": "2021"}}),
            ("cats date:2020-12", "cats", {"date": {"gte": "2020-12", "lt": "2021"}}),
            ("cats date:>2020", "cats", {"date": {"gte": "2021"}}),
            ("cats date:<=2020", "cats", {"date": {"lt": "2021"}}),
            ("cats date:<2020-09 date:>=2019", "cats", {"date": {"gte": "2019", "lt": "2020-09"}}),
            ("cats date:2020..2021", "cats", {"date": {"gte": "2020", "lt": "2022"}}),
            ("cats date:2020..2021-06-05", "cats", {"date": {"gte": "2020", "lte": "2021-06-05"}}),
            ("cats date:2020-05-01", "cats", {"date": "2020-05-01"}),
            ("cats date:!=2020-05-01 date:<=9999", "cats", {"date": {"ne": "2020-05-01", "lte": "9999"}}),
            ('cats date:"2020"', "cats", {"date": "2020"}),
            ('cats year:"2001-2010"', "cats", {"year": "2001-2010"}),
            ("cats year:2001...", "cats...", {"year": 2001}),
            ("cats metadata.month:2020-01", "cats", {"metadata.month": "2020-01"}),
            ("cats metadata.score:>0.5", "cats", {"metadata.score": {"gt": 0.5}}),
            ("cats metadata.score:-2", "cats", {"metadata.score": -2}),
            ("cats metadata.code:007", "cats", {"metadata.code": "007"}),
            ('cats metadata.code:"42"', "cats", {"metadata.code": "42"}),
            ("cats metadata.path:../x", "cats", {"metadata.path": "../x"}),
            ("cats metadata.lang:en metadata.lang:de", "cats", {"metadata.lang": ["en", "de"]}),
            ("cats metadata.lang:en metadata.lang:en", "cats", {"metadata.lang": "en"}),
            ("cats source:https://x.org/a", "cats", {"source": {"contains": "https://x.org/a"}}),
            ("cats source:wiki source:wiki", "cats", {"source": {"contains": "wiki"}}),
        ],
    )
    def test_a_field_with_a_value_becomes_a_filter_and_leaves_the_text(
        self, raw: str, text: str, wanted: dict[str, Any]
    ) -> None:
        parsed = parse_question(raw)
        assert parsed.text == text
        assert parsed.filter == wanted

    @pytest.mark.parametrize(
        "text",
        [
            "What is https://x.org?",
            "std::vector or source::vector",
            "Is 10:30 late?",
            r"C:\docs and C:\\path",
            "Title: Something",
            "title: Something",
            "What is its source:",
            "What is its title:?",
            "resource:wiki",
            "(year:2001)",
            "metadata.:x and metadata.1:x",
            'What does "year:2001 or so" mean?',
            'a source:b"c',
        ],
    )
    def test_what_only_looks_like_a_filter_stays_text(self, text: str) -> None:
        parsed = parse_question(text)
        assert parsed.text == text
        assert parsed.filter == {}

    @pytest.mark.parametrize(
        ("raw", "text"),
        [
            ("What is a cat source:wiki?", "What is a cat?"),
            ("What is a cat? source:wiki?", "What is a cat?"),
            ("What year:2001, is it", "What is it"),
            ("I like cats source:wiki. What are they?", "I like cats. What are they?"),
            ('Who wrote "Emma" year:1815?', 'Who wrote "Emma"?'),
        ],
    )
    def test_a_question_reads_naturally_without_its_filter(self, raw: str, text: str) -> None:
        assert parse_question(raw).text == text

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            ('cats source:""', "'source' has no value"),
            ("cats year:>=", "'year' has no value"),
            ("cats title:>x", "'title' holds a text"),
            ("cats year:2001..", "'year' has a range with one end"),
            ("cats year:..2001", "'year' has a range with one end"),
            ("cats year:2001 year:>1990", "'year' is given both as a value and as a comparison"),
            ("cats year:>1990 year:2001 year:2002", "'year' is given both as a value and as a comparison"),
            ("cats year:>1990 year:>2000", "'year' has two values for 'gt'"),
            ("cats year:2001...2010", "'year' has no range in '2001...2010'; write 'year:FROM..TO'"),
            ("cats date:2001...2010", "'date' has no range in '2001...2010'"),
            ("cats metadata.score:1..b", "'metadata.score' has no range in '1..b'"),
            ("cats year:2001-2010", "'year' can't read '2001-2010'; write .*'year:2001..2010'"),
            ("cats year:2001,2002", "'year' can't read '2001,2002'"),
            ("cats year:>=2001,2002", "'year' can't read '2001,2002'"),
            ("cats year:=2001", "'year' can't read '=2001'"),
            ("cats date:2020-2021", "'date' can't read '2020-2021'"),
            ("cats date:!=2020", "'date' can't leave out '2020' as a whole; write 'date:<2020' or 'date:>2020'"),
            ("cats source:a source:b", "'source' has two values for 'contains'"),
            ("source:wiki year:2001", "holds only filters"),
        ],
    )
    def test_a_filter_that_can_not_be_meant_is_refused_by_name(self, raw: str, message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            parse_question(raw)

    @pytest.mark.parametrize(
        "raw",
        [
            "cats document_id:a",
            "cats source:wiki",
            "cats year:2001..2010 date:>2020-01",
            "cats metadata.a-b:x metadata.a-b:y",
        ],
    )
    def test_the_store_understands_the_filter(self, raw: str) -> None:
        assert where_clause(parse_question(raw).filter)

    def test_only_the_configured_fields_are_filters(self) -> None:
        parsed = parse_question("cats topic:pets year:2001 metadata.year:1", ParsingConfig(filter_fields=("topic",)))
        assert parsed.text == "cats year:2001"
        assert parsed.filter == {"topic": "pets", "metadata.year": 1}

    def test_a_field_name_that_could_never_match_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="filter_fields"):
            ParsingConfig(filter_fields=("two words",))

    def test_filters_stay_text_when_switched_off(self) -> None:
        parsed = parse_question('source:wiki year:>= source:""', ParsingConfig(inline_filters=False))
        assert parsed.text == 'source:wiki year:>= source:""'
        assert parsed.filter == {}


class TestPhrases:
    @pytest.mark.parametrize(
        ("text", "phrases"),
        [
            ('Who wrote "Big Stone Gap" and “Emma”?', ("Big Stone Gap", "Emma")),
            ('Is it "Dear Brother," or "dear brother"?', ("Dear Brother",)),
            ("Who wrote «Les Misérables»?", ("Les Misérables",)),
            ('Is "the" or "of" or "a" or "?" a word?', ()),
            ('A 5" pipe and a 7" pipe', ()),
            ('An open "quote', ()),
            ("It's the dogs' bowl", ()),
        ],
    )
    def test_quoted_texts_that_narrow_a_search_are_found_once_and_stay_in_place(
        self, text: str, phrases: tuple[str, ...]
    ) -> None:
        parsed = parse_question(text)
        assert parsed.phrases == phrases
        assert parsed.text == text

    def test_none_is_found_when_switched_off(self) -> None:
        assert parse_question('Who wrote "Big Stone Gap"?', ParsingConfig(phrases=False)).phrases == ()


class TestSeveralQuestions:
    @pytest.mark.parametrize(
        "questions",
        [
            ("What is X?", "And how does Y work?"),
            ("What is X?", "How tall is it?", "Who built it?"),
            ("what is x?", "and how tall is it"),
            ("I like cats. What do they eat?", "They sleep, too. Where?"),
            ("What is X? I need it today.",),
            ("What is X?", "It is old. Is it good? Thanks!"),
            ("¿Qué es X?", "¿Y cómo funciona?"),
            ('He asked "What? Why?" and left. Who was he?',),
            ("Who wrote Where Are You? in 1990?",),
            ("What did Dr. Who do in St. Louis?",),
            ("What is it? Do not guess.",),
            ("What is X",),
            ("What?! ", "Why?"),
        ],
    )
    def test_a_text_is_cut_where_another_question_begins(self, questions: tuple[str, ...]) -> None:
        questions = tuple(question.strip() for question in questions)
        assert parse_question(" ".join(questions)).questions == questions

    def test_a_script_without_spaces_is_cut_at_its_own_mark(self) -> None:
        assert parse_question("什么是猫？它吃什么？").questions == ("什么是猫？", "它吃什么？")

    def test_what_comes_after_the_last_question_allowed_belongs_to_it(self) -> None:
        parsed = parse_question("Who? What? When? Where?", ParsingConfig(max_questions=2))
        assert parsed.questions == ("Who?", "What? When? Where?")

    def test_the_text_is_one_question_when_switched_off(self) -> None:
        parsed = parse_question("What is X? And Y?", ParsingConfig(split_questions=False))
        assert parsed.questions == ("What is X? And Y?",)
