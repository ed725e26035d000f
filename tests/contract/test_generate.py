"""What every generator promises, and what the extractive answerer promises beyond that."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from deployments.citations import CitationFilter
from deployments.context import NOT_FOUND
from deployments.contracts import (
    Delta,
    Document,
    Generated,
    GenerateRequest,
    Generates,
    GenerationOptions,
    Passage,
    SearchRequest,
    Source,
)
from deployments.embedder import Embedder
from deployments.errors import DeadlineExceeded, StageError
from deployments.generator import ExtractiveConfig, Generator, GeneratorConfig
from deployments.hop import HopConfig
from deployments.prompts import PromptsConfig, prompt_messages
from deployments.remote import RemoteAnswerer, RemoteGenerator
from deployments.store import StoreConfig
from tests.contract.backends import BUDGET_S, Backend
from tests.contract.endless import EndlessAnswerer
from tests.fakes import FakeGenerator
from tests.handles import LocalHandle

QUESTION = "What makes the tides of the sea?"
TIDES = "Many things happen at the coast. The tides of the sea are made by the moon. Gulls shout all day long."
BEES = "Bees make honey from nectar. A hive has one queen who lays every egg."


@pytest.fixture(params=["fake", "extractive", "coalesced"])
def generator(request: pytest.FixtureRequest) -> Generates:
    if request.param == "fake":
        return FakeGenerator()
    backend: Backend = request.getfixturevalue("meaningful")
    return backend.answerer if request.param == "coalesced" else backend.generator


def asking(
    *texts: str, question: str = QUESTION, options: GenerationOptions | None = None, budget_s: float = BUDGET_S
) -> GenerateRequest:
    sources = tuple(Source(number, Passage("", "", text, 0.0)) for number, text in enumerate(texts, start=1))
    messages = prompt_messages(question, sources, PromptsConfig())
    return GenerateRequest(question, sources, messages, options or GenerationOptions(), budget_s=budget_s)


async def answered(generator: Generates, request: GenerateRequest) -> tuple[str, Generated]:
    """The answer's text and its last event; fails unless there are deltas and then exactly one last event."""
    events = [event async for event in generator.generate(request)]
    *deltas, last = events
    assert isinstance(last, Generated)
    assert all(isinstance(event, Delta) for event in deltas)
    return "".join(event.text for event in deltas if isinstance(event, Delta)), last


def numbers_in(answer: str) -> set[int]:
    return {int(number) for number in re.findall(r"\[(\d+)\]", answer)}


async def test_deltas_come_first_and_then_exactly_one_end(generator: Generates) -> None:
    text, last = await answered(generator, asking(TIDES, BEES))
    assert text
    assert last.finish_reason == "stop"
    assert last.generator
    assert last.usage.prompt_tokens > 0
    assert last.usage.completion_tokens > 0


async def test_only_numbers_that_were_given_are_cited(generator: Generates) -> None:
    request = asking(TIDES, BEES)
    text, _ = await answered(generator, request)
    citations = CitationFilter(len(request.sources))
    assert citations.feed(text) + citations.flush() == text
    assert citations.removed == ()
    assert set(citations.cited) == numbers_in(text) != set()


async def test_a_confidence_is_between_0_and_1_where_there_is_one(generator: Generates) -> None:
    for request in (asking(TIDES, BEES), asking(), asking(QUESTION), asking(BEES, question="Where is my passport?")):
        _, last = await answered(generator, request)
        assert last.confidence is None or 0.0 <= last.confidence <= 1.0


async def test_without_sources_the_answer_is_that_nothing_was_found(generator: Generates) -> None:
    text, last = await answered(generator, asking())
    assert text == NOT_FOUND
    assert last.finish_reason == "stop"


@pytest.mark.parametrize("limit", [1, 3])
async def test_an_answer_over_max_tokens_is_cut_and_says_so(generator: Generates, limit: int) -> None:
    whole, _ = await answered(generator, asking(TIDES))
    text, last = await answered(generator, asking(TIDES, options=GenerationOptions(max_tokens=limit)))
    assert last.finish_reason == "length"
    assert last.usage.completion_tokens == limit
    assert whole.startswith(text)
    assert len(text.split()) == limit


async def test_an_answer_within_max_tokens_is_not_cut(generator: Generates) -> None:
    whole, _ = await answered(generator, asking(TIDES))
    text, last = await answered(generator, asking(TIDES, options=GenerationOptions(max_tokens=500)))
    assert (text, last.finish_reason) == (whole, "stop")


@pytest.mark.parametrize("stop", [("sea are",), ("never there", "moon. [", "are made"), ("never there",)])
async def test_an_answer_ends_before_the_first_of_its_stop_texts(generator: Generates, stop: tuple[str, ...]) -> None:
    whole, _ = await answered(generator, asking(TIDES))
    text, last = await answered(generator, asking(TIDES, options=GenerationOptions(stop=stop)))
    end = min((whole.index(one) for one in stop if one in whole), default=len(whole))
    assert text.rstrip() == whole[:end].rstrip()
    assert (end < len(whole)) == ("never there" not in stop or len(stop) > 1)
    assert last.finish_reason == "stop"


async def test_without_time_left_nothing_is_generated(generator: Generates) -> None:
    with pytest.raises(DeadlineExceeded):
        await answered(generator, asking(TIDES, budget_s=0.0))


async def test_answers_at_the_same_time_are_not_mixed_up(generator: Generates) -> None:
    requests = [asking(TIDES), asking(BEES, question="Who lays the eggs of a hive?")] * 5
    alone = [(await answered(generator, request))[0] for request in requests]
    together = await asyncio.gather(*(answered(generator, request) for request in requests))
    assert [text for text, _ in together] == alone


async def test_an_answer_that_is_closed_early_does_not_harm_the_next(generator: Generates) -> None:
    events = generator.generate(asking(TIDES))
    assert isinstance(await anext(events), Delta)
    await events.aclose()
    text, _ = await answered(generator, asking(TIDES))
    assert text


async def test_extracts_are_sentences_of_the_source_that_they_cite(meaningful: Backend) -> None:
    text, _ = await answered(meaningful.generator, asking(BEES, TIDES))
    assert "The tides of the sea are made by the moon. [2]" in text
    assert "Bees" not in text


async def test_extracts_that_are_nowhere_near_the_question_are_no_answer(meaningful: Backend) -> None:
    text, last = await answered(meaningful.generator, asking(BEES, question="How do I renew my passport?"))
    assert text == NOT_FOUND
    assert numbers_in(text) == set()
    assert last.finish_reason == "stop"


@pytest.mark.parametrize("question", [QUESTION, "Who lays the eggs of a hive?", "How do I renew my passport?"])
async def test_confidence_is_below_the_limit_exactly_where_nothing_is_extracted(
    meaningful: Backend, question: str
) -> None:
    for texts in ((TIDES,), (BEES,), (TIDES, BEES), ()):
        text, last = await answered(meaningful.generator, asking(*texts, question=question))
        assert last.confidence is not None
        assert (last.confidence < ExtractiveConfig().min_score) == (text == NOT_FOUND)


async def test_extracts_have_no_citations_of_their_own(meaningful: Backend) -> None:
    tides = "The tides of the sea are made by the moon [2], which pulls the water [1-3]."
    text, _ = await answered(meaningful.generator, asking(tides))
    assert text == "The tides of the sea are made by the moon (2), which pulls the water (1-3). [1]"


async def test_extracts_never_take_a_heading_or_a_question_for_an_answer(meaningful: Backend) -> None:
    text, _ = await answered(meaningful.generator, asking(f"# {QUESTION}", f"{QUESTION} {QUESTION}"))
    assert text == NOT_FOUND


async def test_a_sentence_that_stands_in_two_sources_is_quoted_once(meaningful: Backend) -> None:
    text, _ = await answered(meaningful.generator, asking(TIDES, TIDES))
    assert text.count("made by the moon") == 1


async def test_extracts_of_stored_passages_are_those_of_their_texts(meaningful: Backend) -> None:
    await meaningful.fill("docs", Document("tides", TIDES), Document("bees", BEES))
    vector = (await meaningful.embed(QUESTION))[0]
    passages = await meaningful.search(SearchRequest("docs", 10, vector=vector))
    sources = tuple(Source(number, passage) for number, passage in enumerate(passages, start=1))
    stored = GenerateRequest(QUESTION, sources, (), collection="docs", question_vector=vector, budget_s=BUDGET_S)
    adhoc = asking(*(passage.text for passage in passages))
    assert (await answered(meaningful.generator, stored))[0] == (await answered(meaningful.generator, adhoc))[0]


GULLS = "Gulls shout at the coast all day long. " * 6
BOATS = "Boats lie in the harbour until the water is back. " * 6
LONG = (
    f"The moon makes the tides of the sea. {GULLS}\n\n{BOATS}The moon and the sun make the tides of the sea together."
)


async def merged_source(backend: Backend) -> Source:
    """LONG, stored in several passages and merged into one source."""
    await backend.fill("docs", Document("long", LONG))
    vector = (await backend.embed(QUESTION))[0]
    passages = await backend.search(SearchRequest("docs", 100, vector=vector))
    parts = tuple(sorted(passages, key=lambda passage: passage.position))
    assert len(parts) > 1
    return Source(1, replace(parts[0], text=LONG, end=len(LONG)), parts)


async def test_that_nothing_was_found_is_never_cut(meaningful: Backend) -> None:
    bees = Source(1, Passage("bees", "bees", BEES, 0.5))
    options = GenerationOptions(max_tokens=2)
    request = GenerateRequest("Who built the first submarine?", (bees,), (), options, budget_s=BUDGET_S)
    text, last = await answered(meaningful.generator, request)
    assert (text, last.finish_reason) == (NOT_FOUND, "stop")


async def test_extracts_of_merged_passages_stand_in_the_order_of_their_document(meaningful: Backend) -> None:
    request = GenerateRequest(QUESTION, (await merged_source(meaningful),), (), collection="docs", budget_s=BUDGET_S)
    text, _ = await answered(meaningful.generator, request)
    assert text == (
        "The moon makes the tides of the sea. [1] The moon and the sun make the tides of the sea together. [1]"
    )


async def test_stored_passages_are_extracted_by_their_words_where_the_embedder_fails(
    meaningful: Backend, minilm: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await merged_source(meaningful)
    monkeypatch.setattr(minilm, "embed", None)
    request = GenerateRequest(QUESTION, (source,), (), collection="docs", budget_s=BUDGET_S)
    text, _ = await answered(meaningful.generator, request)
    assert "tides of the sea" in text
    assert "Gulls" not in text
    with pytest.raises(StageError):
        await answered(meaningful.generator, asking(LONG))


@pytest.fixture
def endless(minilm: Embedder, tmp_path: Path) -> RemoteGenerator:
    config = GeneratorConfig(engine="tests.contract.endless:EndlessAnswerer")
    return RemoteGenerator(LocalHandle(Generator(config, StoreConfig(uri=str(tmp_path)), LocalHandle(minilm))))


async def test_an_engine_named_by_its_import_path_stops_when_its_answer_is_closed(endless: RemoteGenerator) -> None:
    events = endless.generate(asking(TIDES))
    assert [await anext(events) for _ in range(3)] == [Delta("word ")] * 3
    await events.aclose()
    del events
    await asyncio.wait_for(EndlessAnswerer.stopped.wait(), 60)


async def test_an_engine_that_talks_on_is_stopped_when_the_budget_is_spent(endless: RemoteGenerator) -> None:
    with pytest.raises(DeadlineExceeded):
        await answered(endless, asking(TIDES, budget_s=0.05))
    await asyncio.wait_for(EndlessAnswerer.stopped.wait(), 60)


async def test_coalesced_answers_keep_their_own_budget_and_their_own_error(minilm: Embedder, tmp_path: Path) -> None:
    config = GeneratorConfig(engine="tests.contract.endless:EndlessAnswerer")
    stage = LocalHandle(Generator(config, StoreConfig(uri=str(tmp_path)), LocalHandle(minilm)))
    answerer = RemoteAnswerer(stage, HopConfig())
    endless = [answered(answerer, asking(TIDES, budget_s=budget_s)) for budget_s in (0.05, 0.1)]
    outcomes = await asyncio.gather(*endless, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded, DeadlineExceeded]
