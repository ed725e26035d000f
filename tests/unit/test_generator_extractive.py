"""Which sentences the extractive answerer quotes, and what it says of its confidence. More is in its contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from deployments.citations import CitationFilter
from deployments.contracts import Delta, EmbedRequest, Generated, GenerateRequest, Passage, Source, Vector
from deployments.errors import EngineFailed, InvalidInput
from deployments.evidence import Scored
from deployments.generator import (
    ExtractiveAnswerer,
    ExtractiveConfig,
    GeneratorConfig,
    GeneratorSettings,
    Quote,
    candidate_quotes,
    choose_quotes,
    coalesces,
    generator_name,
)
from deployments.prompts import NOT_FOUND
from deployments.store import StoreConfig
from tests.fakes import FakeEmbedder

Sentence = tuple[str, float]

TIDES = "The moon pulls the tides."


def passage_of(sentences: list[Sentence], start: int = 0) -> tuple[Passage, Scored]:
    """A passage at this place of its document, made of sentences with their scores."""
    text, spans = "", []
    for sentence, _ in sentences:
        spans.append((len(text), len(text) + len(sentence)))
        text += sentence + " "
    scores = np.array([score for _, score in sentences], np.float32)
    return Passage("", "d", text, 0.5, start=start), Scored(np.array(spans, np.int32).reshape(-1, 2), scores)


def chosen(sources: list[Source], scored: list[Scored], **config: float) -> list[tuple[str, int]]:
    quotes = choose_quotes(candidate_quotes(sources, scored), ExtractiveConfig.model_validate(config))
    return [(quote.text, quote.number) for quote in quotes]


def choose(*sources: list[Sentence], **config: float) -> list[tuple[str, int]]:
    """The quotes chosen from sources given as sentences with their scores, as text and number."""
    passages = [passage_of(sentences) for sentences in sources]
    numbered = [Source(number, passage) for number, (passage, _) in enumerate(passages, start=1)]
    return chosen(numbered, [scored for _, scored in passages], **config)


def test_the_best_sentence_is_quoted_with_the_number_of_its_source() -> None:
    assert choose([("The sun is very hot.", 0.4)], [(TIDES, 0.9)]) == [(TIDES, 2)]


@pytest.mark.parametrize(("score", "num_quotes"), [(0.36, 1), (0.34, 0), (-0.5, 0)])
def test_a_sentence_that_is_not_close_enough_answers_nothing(score: float, num_quotes: int) -> None:
    assert len(choose([(TIDES, score)], min_score=0.35)) == num_quotes


def test_further_sentences_must_be_nearly_as_good_as_the_best() -> None:
    sentences = [("One is the very best.", 0.9), ("Two is nearly as good.", 0.8), ("Three is far behind.", 0.7)]
    assert [text for text, _ in choose(sentences, max_drop=0.15)] == [text for text, _ in sentences[:2]]


def test_no_more_sentences_are_quoted_than_one_answer_may_have() -> None:
    sentences = [(f"Sentence number {number} says something.", 0.9) for number in range(9)]
    assert len(choose(sentences, max_sentences=2)) == 2


def test_sentences_of_one_source_keep_the_order_of_its_text_and_the_best_source_comes_first() -> None:
    quotes = choose(
        [("Alpha comes from the first.", 0.8)],
        [("Beta opens the second source.", 0.85), ("Gamma closes the second source.", 0.9)],
    )
    assert [number for _, number in quotes] == [2, 2, 1]
    assert [text.split()[0] for text, _ in quotes] == ["Beta", "Gamma", "Alpha"]


def test_a_sentence_in_two_sources_is_quoted_once_from_the_first() -> None:
    assert choose([(TIDES, 0.9)], [(TIDES.upper(), 0.9)]) == [(TIDES, 1)]


@pytest.mark.parametrize(
    "sentence",
    [
        "# What pulls the tides",
        "| moon | tides | sea |",
        "What pulls the tides?",
        "是什么引起潮汐？",
        "The moon.",
        "潮汐。",
        "```\nx = 1 + 2\n```",
        "~~~\nx = 1 + 2\n~~~",
        "end of code\nreturn z\n```",
        "- The moon.",
        "Making the tides",
    ],
)
def test_what_states_nothing_is_never_quoted_however_close_it_is(sentence: str) -> None:
    assert choose([(sentence, 0.99), (TIDES, 0.5)]) == [(TIDES, 1)]


@pytest.mark.parametrize("marker", ["- ", "* ", "> ", "• ", "1. ", "12) "])
def test_a_quote_goes_without_the_marker_of_its_list(marker: str) -> None:
    assert choose([(marker + TIDES, 0.9)]) == [(TIDES, 1)]


@pytest.mark.parametrize(
    "sentence", ["> 90 % of samples were positive.", "- 5 degrees is the limit.", "+ 5 degrees is the limit."]
)
def test_a_sign_before_a_number_is_no_marker(sentence: str) -> None:
    assert choose([(sentence, 0.9)]) == [(sentence, 1)]


@pytest.mark.parametrize("sentence", ["3. Oktober 1990 ist der Tag.", "- not only the sun does."])
def test_what_looks_like_a_marker_inside_a_line_is_none(sentence: str) -> None:
    assert choose([("Der Tag:", 0.1), (sentence, 0.9)]) == [(sentence, 1)]


def test_a_marker_on_a_later_line_is_taken_off() -> None:
    assert choose([("The list:\n ", 0.1), (f"- {TIDES}", 0.9)]) == [(TIDES, 1)]


@pytest.mark.parametrize("sentence", ["서울은 한국의 수도이다.", "Ankara Türkiye'nin başkentidir.", "他来了。"])
def test_three_words_with_a_full_stop_are_a_statement(sentence: str) -> None:
    assert choose([(sentence, 0.9)]) == [(sentence, 1)]


def test_white_space_inside_a_quote_is_folded() -> None:
    assert choose([("The moon\n  pulls\tthe tides.", 0.9)]) == [(TIDES, 1)]


def test_a_sentence_in_a_script_without_spaces_is_quoted() -> None:
    assert choose([("月亮引起潮汐。", 0.9)]) == [("月亮引起潮汐。", 1)]


@pytest.mark.parametrize(
    ("sentence", "quoted"),
    [
        ("Shown before [12] and [3-5].", "Shown before (12) and (3-5)."),
        ("Rows x[1] and `y = [2]` stay.", "Rows x[1] and `y = [2]` stay."),
    ],
)
def test_what_would_read_as_a_citation_inside_a_quote_is_none(sentence: str, quoted: str) -> None:
    assert choose([(sentence, 0.9)]) == [(quoted, 1)]


@pytest.mark.parametrize(
    ("sentence", "is_quoted"), [("They are made by the moon.", True), ("Gulls are made by the moon.", False)]
)
def test_a_sentence_that_refers_back_is_scored_together_with_the_one_before_it(sentence: str, is_quoted: bool) -> None:
    sentences = [("Tides rise twice a day.", 0.9), (sentence, 0.65)]
    assert ((sentence, 1) in choose(sentences, max_drop=0.15)) == is_quoted


def test_a_sentence_that_refers_back_never_scores_less_for_it() -> None:
    assert choose([("Gulls shout all day long.", 0.1), ("They are made by the moon.", 0.6)], min_score=0.6) == [
        ("They are made by the moon.", 1)
    ]


def test_the_first_sentence_of_a_source_does_not_refer_to_the_source_before_it() -> None:
    quotes = choose([("Tides rise twice a day.", 0.9)], [("They are made by the moon.", 0.65)], max_drop=0.15)
    assert quotes == [("Tides rise twice a day.", 1)]


def merged(number: int, *parts: tuple[Passage, Scored]) -> Source:
    """A source that was merged from stored passages; its own text is none of theirs."""
    passages = tuple(passage for passage, _ in parts)
    whole = replace(passages[0], text=" ".join(passage.text for passage in passages))
    return Source(number, whole, passages)


def test_quotes_from_the_parts_of_a_merged_source_stand_in_the_order_of_the_document() -> None:
    first = passage_of([("Alpha opens the document.", 0.8), ("Nobody asked for this one.", 0.1)], start=100)
    second = passage_of([("Beta stands in the middle.", 0.7), ("Gamma comes close after it.", 0.9)], start=200)
    other = passage_of([("Delta is another document.", 0.85)])
    sources = [Source(1, other[0]), merged(2, first, second)]
    quotes = chosen(sources, [other[1], first[1], second[1]], max_sentences=4, max_drop=0.3)
    assert [(text.split()[0], number) for text, number in quotes] == [
        ("Alpha", 2),
        ("Beta", 2),
        ("Gamma", 2),
        ("Delta", 1),
    ]


def test_a_sentence_where_the_parts_of_a_source_overlap_is_quoted_once() -> None:
    first = passage_of([("Gulls shout all day long.", 0.1), (TIDES, 0.9)], start=0)
    second = passage_of([(TIDES, 0.9), ("The sun helps a little.", 0.8)], start=26)
    quotes = chosen([merged(1, first, second)], [first[1], second[1]])
    assert quotes == [(TIDES, 1), ("The sun helps a little.", 1)]


def test_sources_without_sentences_give_no_quotes() -> None:
    assert choose([], []) == []
    assert choose() == []


texts = ("One says this.", "one says THIS.", "Two says that.", "Three is here.", "Four is there.")
quote_lists = st.lists(
    st.builds(
        Quote,
        text=st.sampled_from(
            ("One says this.", "one says THIS.", "Two says that.", "Three is here.", "Four is there.")
        ),
        number=st.integers(1, 3),
        start=st.integers(0, 50),
        score=st.floats(-1, 1),
    ),
    max_size=10,
).map(lambda quotes: sorted(quotes, key=lambda quote: (-quote.score, quote.number, quote.start)))


@given(quote_lists, st.integers(1, 4), st.floats(0, 1), st.floats(0, 0.5))
def test_quotes_are_few_good_distinct_and_grouped_by_their_source(
    best_first: list[Quote], max_sentences: int, min_score: float, max_drop: float
) -> None:
    config = ExtractiveConfig(max_sentences=max_sentences, min_score=min_score, max_drop=max_drop)
    quotes = choose_quotes(best_first, config)
    assert len(quotes) <= max_sentences
    assert len({quote.text.casefold() for quote in quotes}) == len(quotes)
    assert bool(quotes) == (bool(best_first) and best_first[0].score >= min_score)
    if quotes:
        assert best_first[0] in quotes
        assert min(quote.score for quote in quotes) >= max(min_score, best_first[0].score - max_drop)
        assert quotes[0].number == best_first[0].number
    best_source_first = dict.fromkeys(quote.number for quote in best_first if quote in quotes)
    assert [(quote.number, quote.start) for quote in quotes] == [
        (number, start)
        for number in best_source_first
        for start in sorted(quote.start for quote in quotes if quote.number == number)
    ]


QUESTION = "What makes the tides of the sea?"
COAST = "Many things happen at the coast. The tides of the sea are made by the moon. Gulls shout all day long."
BEES = "Bees make honey from nectar. A hive has one queen who lays every egg."


class Answerer:
    """The extractive answerer around an embedder that knows words alone."""

    def __init__(self, folder: Path) -> None:
        self.embedder = FakeEmbedder()
        self._store = StoreConfig(uri=str(folder))

    async def answer(
        self, *sources: Source, question: str = QUESTION, vector: Vector | None = None, **config: Any
    ) -> tuple[str, Generated]:
        extractive = ExtractiveConfig.model_validate(config)
        settings = GeneratorSettings(generator=GeneratorConfig(extractive=extractive), store=self._store)
        answerer = ExtractiveAnswerer(settings, self.embedder)
        request = GenerateRequest(question, sources, (), question_vector=vector)
        *deltas, last = [event async for event in answerer.generate(request)]
        assert isinstance(last, Generated)
        return "".join(event.text for event in deltas if isinstance(event, Delta)), last


@pytest.fixture
def answerer(tmp_path: Path) -> Answerer:
    return Answerer(tmp_path)


def source(number: int, text: str, *parts: Passage) -> Source:
    return Source(number, Passage("", "", text, 0.0), parts)


async def test_the_answer_is_the_quote_and_its_citation(answerer: Answerer) -> None:
    text, last = await answerer.answer(source(1, BEES), source(2, COAST), max_sentences=1)
    assert text == "The tides of the sea are made by the moon. [2]"
    assert (last.finish_reason, last.generator) == ("stop", "extractive")
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(f"{BEES} {COAST}".split()), 11)


async def test_an_answer_quotes_the_parts_of_a_merged_source_in_the_order_of_the_document(answerer: Answerer) -> None:
    parts = (
        Passage("", "", "It is dark. The sea has tides all year.", 0.0, start=40),
        Passage("", "", "The tides of the sea are made by the moon.", 0.0, start=80),
    )
    text, _ = await answerer.answer(source(1, "What was merged.", *parts), min_score=0.2, max_drop=1, max_sentences=2)
    assert text == "The sea has tides all year. [1] The tides of the sea are made by the moon. [1]"


async def test_an_answer_cites_its_sources_and_nothing_that_they_cite(answerer: Answerer) -> None:
    text, _ = await answerer.answer(
        source(1, BEES), source(2, "The tides of the sea are made by the moon [12], as [1] shows."), max_sentences=1
    )
    assert text == "The tides of the sea are made by the moon (12), as (1) shows. [2]"
    citations = CitationFilter(2)
    assert citations.feed(text) + citations.flush() == text
    assert (citations.cited, citations.removed) == ((2,), ())


async def test_quotes_behind_a_long_fence_are_cited(answerer: Answerer) -> None:
    code = "make the tides of the sea\n" * 40
    text, _ = await answerer.answer(source(1, f"```\n{code}```"), source(2, COAST), min_score=0.01, max_drop=1)
    citations = CitationFilter(2)
    citations.feed(text)
    citations.flush()
    assert "```" not in text
    assert 2 in citations.cited


QUESTIONS = (QUESTION, "How does a hive get its eggs?", "Who lays the coast?", "How do I renew my passport?", "?")


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("min_score", [0.01, 0.2, 0.35, 0.5, 0.7, 1.0])
async def test_the_confidence_is_below_the_limit_exactly_where_nothing_is_quoted(
    answerer: Answerer, question: str, min_score: float
) -> None:
    text, last = await answerer.answer(source(1, COAST), source(2, BEES), question=question, min_score=min_score)
    assert last.confidence is not None
    assert 0.0 <= last.confidence <= 1.0
    assert (last.confidence < min_score) == (text == NOT_FOUND)


async def test_the_confidence_in_what_says_the_opposite_is_none(answerer: Answerer) -> None:
    (vector,) = (await answerer.embedder.embed(EmbedRequest((TIDES,)), 1.0)).value.vectors
    _, last = await answerer.answer(source(1, TIDES), question="Nobody knows.", vector=-vector)
    assert last.confidence == 0.0


async def test_the_confidence_grows_with_how_well_the_sources_answer(answerer: Answerer) -> None:
    async def confidence(question: str) -> float:
        confidence = (await answerer.answer(source(1, COAST), question=question))[1].confidence
        assert confidence is not None
        return confidence

    repeated = await confidence("The tides of the sea are made by the moon.")
    assert repeated == pytest.approx(1.0, abs=0.01)
    assert await confidence("How do I renew my passport?") < await confidence(QUESTION) < repeated


@pytest.mark.parametrize("sources", [(), (source(1, ""),), (source(1, "# Tides\n\nWhat makes the tides of the sea?"),)])
async def test_where_no_source_states_anything_nothing_is_found_and_nothing_trusted(
    answerer: Answerer, sources: tuple[Source, ...]
) -> None:
    text, last = await answerer.answer(*sources)
    assert (text, last.finish_reason, last.confidence) == (NOT_FOUND, "stop", 0.0)
    assert last.usage.completion_tokens == len(NOT_FOUND.split())


async def test_without_sources_an_answer_needs_no_embedder(answerer: Answerer) -> None:
    answerer.embedder.faults.error = EngineFailed("the embedder is out of order")
    assert (await answerer.answer())[0] == NOT_FOUND
    with pytest.raises(EngineFailed, match="out of order"):
        await answerer.answer(source(1, COAST))


async def test_a_question_that_the_embedder_refuses_is_refused(answerer: Answerer) -> None:
    answerer.embedder.faults.error = InvalidInput("bad question")
    with pytest.raises(InvalidInput, match="bad question"):
        await answerer.answer(source(1, COAST))


def test_users_see_the_extractive_answerer_by_that_name() -> None:
    assert generator_name(GeneratorConfig()) == "extractive"
    assert generator_name(GeneratorConfig(engine="my.module:Engine")) == "my.module:Engine"


@pytest.mark.parametrize(
    ("config", "together"),
    [
        (GeneratorConfig(), True),
        (GeneratorConfig(engine="somebody:Engine"), False),
        (GeneratorConfig(engine="somebody:Engine", coalesce=True), True),
        (GeneratorConfig(coalesce=False), False),
    ],
)
def test_only_answers_of_the_extractive_engine_travel_together_unless_the_config_says_so(
    config: GeneratorConfig, together: bool
) -> None:
    assert coalesces(config) is together
