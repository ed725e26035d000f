"""Parsing: a raw question becomes a clean one, or a clear refusal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import InvalidInput
from deployments.parsing import last_question, parse_question
from deployments.rewriting import rewrite


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
    assert parse_question(raw) == question


@pytest.mark.parametrize("raw", ["", "   ", "\n\t", "\x00\x01"])
def test_a_question_without_text_is_refused(raw: str) -> None:
    with pytest.raises(InvalidInput, match="empty"):
        parse_question(raw)


def test_a_question_is_measured_after_cleaning_and_a_longer_one_refused_with_both_lengths() -> None:
    assert parse_question("  " + "a" * 10 + " \n", max_chars=10) == "a" * 10
    with pytest.raises(InvalidInput, match="11 characters; shorten it to 10"):
        parse_question("a" * 11, max_chars=10)


@given(st.text())
def test_a_clean_question_stays_as_it_is(raw: str) -> None:
    try:
        question = parse_question(raw)
    except InvalidInput:
        return
    assert parse_question(question) == question
    assert question == question.strip()
    assert not any(unicodedata.category(character) == "Cc" for character in question)


def test_the_question_of_a_conversation_is_its_last_user_message() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Second?"},
        {"role": "assistant", "content": "Let me think."},
    ]
    assert last_question(messages) == "Second?"


@pytest.mark.parametrize("messages", [[], [{"role": "system", "content": "Be brief."}]])
def test_a_conversation_without_a_user_is_refused(messages: list[dict[str, str]]) -> None:
    with pytest.raises(InvalidInput, match="user"):
        last_question(messages)


def test_a_question_is_searched_as_it_is_asked() -> None:
    assert rewrite("What is it?") == ("What is it?",)
