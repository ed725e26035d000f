"""Which sentences the extractive answerer quotes. The answers themselves are in the generate contract."""

from __future__ import annotations

import numpy as np
import pytest

from deployments.contracts import Passage, Source
from deployments.evidence import Scored
from deployments.generator import ExtractiveConfig, GeneratorConfig, choose_quotes, generator_name

Sentence = tuple[str, float]


def choose(*sources: list[Sentence], **config: float) -> list[tuple[str, int]]:
    """The quotes chosen from sources given as sentences with their scores, as text and number."""
    numbered, scored = [], []
    for number, sentences in enumerate(sources, start=1):
        text, spans = "", []
        for sentence, _ in sentences:
            spans.append((len(text), len(text) + len(sentence)))
            text += sentence + " "
        numbered.append(Source(number, Passage(f"p{number}", "d", text, 0.5)))
        scores = np.array([score for _, score in sentences], np.float32)
        scored.append(Scored(np.array(spans, np.int32).reshape(-1, 2), scores))
    quotes = choose_quotes(numbered, scored, ExtractiveConfig.model_validate(config))
    return [(quote.text, quote.number) for quote in quotes]


def test_the_best_sentence_is_quoted_with_the_number_of_its_source() -> None:
    chosen = choose([("The sun is very hot.", 0.4)], [("The moon pulls the tides.", 0.9)])
    assert chosen == [("The moon pulls the tides.", 2)]


@pytest.mark.parametrize(("score", "num_quotes"), [(0.36, 1), (0.34, 0), (-0.5, 0)])
def test_a_sentence_that_is_not_close_enough_answers_nothing(score: float, num_quotes: int) -> None:
    assert len(choose([("The moon pulls the tides.", score)], min_score=0.35)) == num_quotes


def test_further_sentences_must_be_nearly_as_good_as_the_best() -> None:
    sentences = [("One is the very best.", 0.9), ("Two is nearly as good.", 0.8), ("Three is far behind.", 0.7)]
    assert [text for text, _ in choose(sentences, max_drop=0.15)] == [text for text, _ in sentences[:2]]


def test_no_more_sentences_are_quoted_than_one_answer_may_have() -> None:
    sentences = [(f"Sentence number {number} says something.", 0.9) for number in range(9)]
    assert len(choose(sentences, max_sentences=2)) == 2


def test_sentences_of_one_source_keep_the_order_of_its_text_and_the_best_source_comes_first() -> None:
    chosen = choose(
        [("Alpha comes from the first.", 0.8)],
        [("Beta opens the second source.", 0.85), ("Gamma closes the second source.", 0.9)],
    )
    assert [number for _, number in chosen] == [2, 2, 1]
    assert [text.split()[0] for text, _ in chosen] == ["Beta", "Gamma", "Alpha"]


def test_a_sentence_in_two_sources_is_quoted_once_from_the_first() -> None:
    chosen = choose([("The moon pulls the tides.", 0.9)], [("the moon pulls the TIDES.", 0.9)])
    assert chosen == [("The moon pulls the tides.", 1)]


@pytest.mark.parametrize(
    "sentence",
    ["# What pulls the tides", "| moon | tides | sea |", "What pulls the tides?", "The moon.", "```\nx = 1 + 2\n```"],
)
def test_what_states_nothing_is_never_quoted_however_close_it_is(sentence: str) -> None:
    assert choose([(sentence, 0.99), ("The moon pulls the tides.", 0.5)]) == [("The moon pulls the tides.", 1)]


def test_white_space_inside_a_quote_is_folded() -> None:
    assert choose([("The moon\n  pulls\tthe tides.", 0.9)]) == [("The moon pulls the tides.", 1)]


def test_sources_without_sentences_give_no_quotes() -> None:
    assert choose([], []) == []
    assert choose() == []


def test_users_see_the_extractive_answerer_by_that_name() -> None:
    assert generator_name(GeneratorConfig()) == "extractive"
    assert generator_name(GeneratorConfig(engine="my.module:Engine")) == "my.module:Engine"
