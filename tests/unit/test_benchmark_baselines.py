"""The baselines answer as raglane does: over the same stages the textbook pipeline gives what raglane's lane gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.baselines.engines import Answering, Encoding, Scoring, Searching, run_sorted
from benchmarks.baselines.settings import BaselineConfig, store_of_environment
from benchmarks.baselines.shapes import AnswerBody, SearchBody
from benchmarks.baselines.textbook import HybridSearch, TextbookLane, Written
from deployments.context import ContextBuilder, ContextConfig
from deployments.contracts import (
    Candidate,
    Delta,
    Document,
    EmbedRequest,
    GenerateRequest,
    Passage,
    RerankRequest,
    Vector,
)
from deployments.errors import EngineFailed, InvalidInput
from deployments.parsing import parse_question
from serve_app.api.schemas import AnswerResponse, Citation, Result
from serve_app.lane_config import LaneConfig
from serve_app.pipeline import Answered, Lane, Question
from serve_app.retrieval import Query, Stages
from serve_app.trace import Deadline
from tests.fakes import (
    FakeEmbedder,
    FakeGenerator,
    FakeIndexer,
    FakeReranker,
    FakeRetriever,
    FakeStore,
    count_tokens,
)

DOCUMENTS = (
    Document("tides", "The moon pulls the tides of the sea.\n\nThe sun does, too.", "Tides", metadata={"year": 2024}),
    Document("bees", "Bees make honey from nectar.\n\nHoney is heavier than water.", "Bees", metadata={"year": 2020}),
    Document("iron", "Iron rusts in moist air.\n\nIron is heavier than water.", "Iron", metadata={"year": 1900}),
    Document("bread", "Yeast makes the dough rise.\n\nBread is baked from flour.", "Bread", metadata={"year": 1900}),
    Document("sky", "The sky is blue at noon.\n\nThe sea is blue, too.", "Sky", metadata={"year": 2024}),
)
QUESTIONS = [
    "What pulls the tides of the sea?",
    # Has sub-queries.
    "Which is heavier, iron or honey?",
    # Has a phrase, which counts for passages that hold it word for word.
    'What is "blue at noon" over the sea?',
    # Has a filter.
    "What is blue? metadata.year:>2000",
    "xylophone",
]
# Fewer than there are passages, so that what is cut off counts.
LIMITS = {"candidates_per_search": 5, "rerank_candidates": 4, "rerank_weight": 0.7}


class StagesOverFakes:
    """The fakes of raglane's stages, called as a baseline calls them."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    async def embed(self, texts: tuple[str, ...]) -> Vector:
        return (await self._stages.embedder.embed(EmbedRequest(texts), 1.0)).value.vectors

    async def search(self, search: HybridSearch) -> list[Passage]:
        results = [(await self._stages.retriever.search(request, 1.0)).value for request in search.requests()]
        return search.fused(results, BaselineConfig().fusion)

    async def rerank(self, request: RerankRequest) -> Vector:
        return (await self._stages.reranker.rerank(request, 1.0)).value

    async def generate(self, request: GenerateRequest) -> Written:
        pieces: list[str] = []
        async for event in self._stages.generator.generate(request):
            if not isinstance(event, Delta):
                return Written("".join(pieces), event)
            pieces.append(event.text)
        raise AssertionError("a generator ends with Generated")


@pytest.fixture
async def stages() -> Stages:
    embedder, store = FakeEmbedder(), FakeStore()
    await FakeIndexer(store, embedder).index("docs", DOCUMENTS, 1.0)
    return Stages(embedder, FakeRetriever(store), FakeReranker(), FakeGenerator())


def raglane(stages: Stages) -> Lane:
    return Lane(LaneConfig.model_validate(LIMITS), ContextBuilder(ContextConfig(), count_tokens), stages)


def textbook(stages: Stages) -> TextbookLane:
    config = BaselineConfig.model_validate(LIMITS)
    return TextbookLane(config, ContextBuilder(ContextConfig(), count_tokens), StagesOverFakes(stages))


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("k", [1, 3, 4])
async def test_a_search_finds_what_raglane_finds(stages: Stages, question: str, k: int) -> None:
    expected = (await raglane(stages).search(Query(question, "docs", k), Deadline.after(60))).passages
    found = (await textbook(stages).search(SearchBody(query=question, k=k))).results
    assert len(found) == k
    assert [one.id for one in found] == [passage.id for passage in expected]
    assert [one.score for one in found] == pytest.approx([passage.score for passage in expected])


@pytest.mark.parametrize("question", QUESTIONS)
async def test_an_answer_is_raglanes(stages: Stages, question: str) -> None:
    events = [event async for event in raglane(stages).answer(Question(Query(question, "docs", 4)), Deadline.after(60))]
    expected = events[-1]
    assert isinstance(expected, Answered)
    found = await textbook(stages).answer(AnswerBody(question=question, k=4))
    assert found.answer == "".join(event.text for event in events if isinstance(event, Delta))
    assert [one.passage_id for one in found.citations] == [source.passage.id for source in expected.citations]
    assert (found.found, found.generator) == (expected.found, expected.generator)
    assert found.usage["prompt_tokens"] == expected.usage.prompt_tokens


def test_the_numbers_of_the_lane_are_raglanes() -> None:
    lane, baseline = LaneConfig(), BaselineConfig()
    for name in ("candidates_per_search", "rerank_candidates", "rerank_weight", "default_k", "default_collection"):
        assert getattr(baseline, name) == getattr(lane, name)
    for name in ("fusion", "parsing", "rewriting"):
        assert getattr(baseline, name) == getattr(lane, name)


def test_responses_have_raglanes_fields_but_for_what_only_raglane_can_say() -> None:
    from benchmarks.baselines import shapes

    own = {"timings", "degraded", "cached", "request_id"}
    assert set(shapes.AnswerResponse.model_fields) == set(AnswerResponse.__dataclass_fields__) - own
    assert set(shapes.Citation.model_fields) == set(Citation.__dataclass_fields__)
    assert set(shapes.Result.model_fields) == set(Result.__dataclass_fields__)


@pytest.mark.parametrize("change", [{"mode": "vector"}, {"rerank": False}, {"cache": True}, {"stream": True}, {"z": 1}])
def test_a_request_that_a_baseline_would_answer_differently_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AnswerBody.model_validate({"question": "why?", **change})


def test_the_store_is_that_of_the_servers_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGLANE_DATA", "/some/folder")
    assert store_of_environment().uri == "/some/folder/lancedb"
    monkeypatch.delenv("RAGLANE_DATA")
    assert "lancedb" in store_of_environment().uri


class Recording:
    """An engine that notes its batches; an item is a word, and `bad` can't be prepared."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def prepare(self, items: Sequence[str]) -> list[tuple[str, int] | InvalidInput]:
        return [InvalidInput("bad") if item == "bad" else (item, len(item)) for item in items]

    def run(self, batch: Sequence[str]) -> list[str]:
        self.batches.append(list(batch))
        return [item.upper() for item in batch]


def test_items_run_longest_first_32_at_a_time_and_come_back_in_order() -> None:
    engine = Recording()
    items = ["x" * length for length in range(1, 41)]
    assert run_sorted(engine, items) == [item.upper() for item in items]
    assert [len(batch) for batch in engine.batches] == [32, 8]
    assert [len(item) for batch in engine.batches for item in batch] == list(range(40, 0, -1))


def test_nothing_runs_for_no_items() -> None:
    engine = Recording()
    assert run_sorted(engine, []) == []
    assert engine.batches == []


def test_an_item_that_can_not_be_taken_is_an_error() -> None:
    with pytest.raises(InvalidInput):
        run_sorted(Recording(), ["good", "bad"])


@pytest.fixture
def instant() -> BaselineConfig:
    engines = "benchmarks.delayed_engines"
    return BaselineConfig.model_validate(
        {
            "embedder": {"engine": f"{engines}:DelayedEncoder"},
            "retriever": {"engine": f"{engines}:DelayedSearch"},
            "reranker": {"method": "cross_encoder", "engine": f"{engines}:DelayedScorer"},
            "generator": {"engine": f"{engines}:DelayedAnswerer"},
        }
    )


async def test_texts_of_several_requests_are_embedded_together_and_told_apart(instant: BaselineConfig) -> None:
    vectors = await Encoding(instant).embed([("a", "b"), ("c",)])
    assert [one.shape for one in vectors] == [(2, 8), (1, 8)]


async def test_pairs_of_several_requests_are_scored_together_and_told_apart(instant: BaselineConfig) -> None:
    requests = [RerankRequest("q", tuple(Candidate(str(n)) for n in range(count))) for count in (2, 3)]
    first, second = await Scoring(instant).rerank(requests)
    np.testing.assert_allclose(np.concatenate([first, second]), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])


async def test_searches_together_and_in_a_row_find_the_same(instant: BaselineConfig) -> None:
    searching = Searching(instant)
    vectors = np.full((2, 8), 8**-0.5, dtype=np.float32)
    search = HybridSearch("docs", ("a", "b"), vectors, parse_question("a"), depth=5, num_results=3)
    one, other = await searching.search([search, search])
    assert one == other == await searching.search_in_a_row(search)
    assert [passage.id for passage in one] == ["0:0", "1:0", "2:0"]


async def test_a_whole_answer_is_folded(instant: BaselineConfig) -> None:
    written = await Answering(instant).generate(GenerateRequest("q", (), ()))
    assert (written.text, written.end.generator) == ("The first passage says so. [1]", "delayed")


async def test_a_generator_that_breaks_off_is_an_error(instant: BaselineConfig) -> None:
    config = BaselineConfig.model_validate({"generator": {"engine": f"{__name__}:BreaksOff"}})
    with pytest.raises(EngineFailed):
        await Answering(config).generate(GenerateRequest("q", (), ()))


class BreaksOff:
    """A generator that ends without its last event."""

    def __init__(self, *_: object) -> None:
        pass

    async def generate(self, request: GenerateRequest) -> Any:
        yield Delta("half")


async def test_the_single_process_serves_over_http(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.baselines import plain_fastapi

    monkeypatch.setattr(plain_fastapi, "StagesInProcess", lambda config: StagesOverFakes(stages))
    app = plain_fastapi.create_app(BaselineConfig())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://baseline") as http:
        assert (await http.get("/health/ready")).status_code == 200
        found = (await http.post("/v1/search", json={"query": "tides", "k": 2})).json()
        answer = (await http.post("/v1/answers", json={"question": "What pulls the tides?", "cache": False})).json()
        refused = await http.post("/v1/search", json={"query": "tides", "mode": "text"})
    assert len(found["results"]) == 2
    assert answer["citations"][0]["document_id"] == "tides"
    assert refused.status_code == 422
