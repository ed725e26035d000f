"""Sentence spans: what they promise for any text, and where sentences end in papers and in Markdown."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.ingestion.sentences import split_sentences

SCIFACT = Path(__file__).parents[3] / "shared/data/scifact/corpus.jsonl"

# Pieces that open, close and confuse blocks and sentences, so that random texts meet every rule.
PIECES = [
    "```\n",
    "```rust\n",
    "~~~",
    "\n\n",
    "\n",
    "\r\n",
    "- ",
    "1. ",
    "# ",
    "| ",
    "===\n",
    ". ",
    "? ",
    "e.g. ",
    "An. ",
    "`",
    "<",
    ">",
]
TEXTS = st.one_of(
    st.text(),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8), st.sampled_from(["word ", "Next "]))).map("".join),
)


def sentences(text: str, max_chars: int = 600) -> list[str]:
    return [text[start:end] for start, end in split_sentences(text, max_chars)]


def without_whitespace(text: str) -> str:
    return "".join(text.split())


@settings(max_examples=300)
@given(text=TEXTS, max_chars=st.integers(1, 80))
def test_spans_are_in_order_trimmed_within_the_limit_and_lose_nothing(text: str, max_chars: int) -> None:
    spans = split_sentences(text, max_chars)

    assert all(0 < end - start <= max_chars for start, end in spans)
    assert all(end <= next_start for (_, end), (next_start, _) in pairwise(spans))
    assert all(text[start:end] == text[start:end].strip() for start, end in spans)
    assert without_whitespace("".join(text[start:end] for start, end in spans)) == without_whitespace(text)


@pytest.mark.parametrize(
    "text",
    [
        "We used two drugs, e.g. Aspirin and others.",
        "The result is shown in Fig. 2 and discussed below.",
        "The values of Figs. 3 and 4 agree with Eq. (3) well.",
        "Smith et al. 2010 and Evrard et. al. showed the same.",
        "The mean was 2.5 mg and the ratio 0.75 in both groups.",
        "Mice were given i.v. doses of the drug twice a day.",
        "We counted Anopheles gambiae and An. funestus in each house.",
        "Deinococcus spp. are renowned for their resistance.",
        "Calling `a.b()? and! c.` in the middle is fine.",
        "The code is at https://example.org/a.b?c=d.e for everyone.",
    ],
)
def test_abbreviations_numbers_code_and_addresses_do_not_end_a_sentence(text: str) -> None:
    assert sentences(text) == [text]


def test_sentences_between_angle_brackets_are_seen() -> None:
    text = "The effect was clear (p < 0.05). The second group did not differ. The rate was > 5 in both."

    assert sentences(text) == [
        "The effect was clear (p < 0.05).",
        "The second group did not differ.",
        "The rate was > 5 in both.",
    ]


def test_offsets_are_characters_not_bytes() -> None:
    text = "Ünïcödé 😀 comes first here. Zweiter Satz mit Wörtern."

    assert sentences(text) == ["Ünïcödé 😀 comes first here.", "Zweiter Satz mit Wörtern."]


def test_scripts_without_spaces_are_split_at_their_own_full_stops() -> None:
    assert sentences("今日は天気がいい。本を読みますか？はい、読みます。") == [
        "今日は天気がいい。",
        "本を読みますか？",
        "はい、読みます。",
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_headings_list_items_paragraphs_and_underlines_end_a_sentence(newline: str) -> None:
    lines = [
        "# A heading",
        "Some text that",
        "goes on",
        "- the first item",
        "- the second item",
        "",
        "Title",
        "=====",
        "The end",
    ]

    found = sentences(newline.join(lines))

    assert found == [
        "# A heading",
        f"Some text that{newline}goes on",
        "- the first item",
        "- the second item",
        f"Title{newline}=====",
        "The end",
    ]


def test_a_code_fence_is_one_unit_even_with_empty_lines_and_full_stops() -> None:
    fence = "```rust\nlet x = 1; // One. Two.\n\n# not a heading\n```"

    assert sentences(f"This is the text before.\n{fence}\nThis is the text after.") == [
        "This is the text before.",
        fence,
        "This is the text after.",
    ]


def test_a_fence_over_the_limit_is_cut_at_its_lines() -> None:
    fence = "```\n" + "let value = compute(another);\n" * 20 + "```"

    pieces = sentences(fence, max_chars=100)

    assert len(pieces) > 5
    assert {line for piece in pieces for line in piece.splitlines()} == {"```", "let value = compute(another);"}


def test_text_after_the_end_of_a_fence_that_was_opened_before_the_text_is_prose() -> None:
    text = "let x = 1;\n```\n\nHere is the first sentence. Here is the second sentence.\n\n```rust\nlet y = 2;\n```"

    assert sentences(text) == [
        "let x = 1;\n```",
        "Here is the first sentence.",
        "Here is the second sentence.",
        "```rust\nlet y = 2;\n```",
    ]


def test_fragments_join_a_neighbour_of_their_block_only() -> None:
    assert sentences("1. First we wash it. 2. Then we dry it. Why not?\n\nYes.") == [
        "1. First we wash it.",
        "2. Then we dry it. Why not?",
        "Yes.",
    ]


def test_a_short_question_joins_its_answer_not_the_statement_before_it() -> None:
    assert sentences("The pump must be primed before use. Why? Because air in it keeps it from drawing.") == [
        "The pump must be primed before use.",
        "Why? Because air in it keeps it from drawing.",
    ]


def test_a_long_sentence_is_cut_after_clauses() -> None:
    clause = "and then it went on for a while, "

    pieces = sentences(clause * 20, max_chars=150)

    assert len(pieces) > 3
    assert all(piece.endswith(",") for piece in pieces)


def test_a_word_without_an_end_is_cut_hard() -> None:
    pieces = sentences("a" * 10_000, max_chars=600)

    assert "".join(pieces) == "a" * 10_000
    assert max(map(len, pieces)) <= 600


@pytest.mark.parametrize("opening", ["~" * 200_000, "```" + "a" * 200_000, "```" + "\t" * 200_000])
def test_what_only_looks_like_a_fence_is_read_in_linear_time(opening: str) -> None:
    pieces = sentences(f"{opening}`. Why is it so?")

    assert without_whitespace("".join(pieces)) == without_whitespace(f"{opening}`. Why is it so?")


@pytest.mark.parametrize("text", ["", " ", "\n\r\n\t\u00a0\u2003\n"])
def test_whitespace_has_no_sentences(text: str) -> None:
    assert split_sentences(text) == []


@pytest.mark.skipif(not SCIFACT.exists(), reason="the SciFact corpus is not there")
def test_abstracts_have_about_as_many_sentences_as_full_stops_before_capitals() -> None:
    with SCIFACT.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file][:500]

    spans = [split_sentences(text) for text in texts]

    mean_chars = sum(map(len, texts)) / sum(map(len, spans))
    assert 120 < mean_chars < 200
