"""What every reranker promises, and what each of the two methods promises beyond that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from deployments.contracts import Candidate, Document, EmbedRequest, Passage, RerankRequest, Reranks, SearchRequest
from deployments.embedder import Embedder
from deployments.errors import DeadlineExceeded, NotFound, StageError
from deployments.evidence import EvidenceConfig
from deployments.hop import HopConfig
from deployments.remote import RemoteReranker
from deployments.reranker import Reranker, RerankerConfig
from deployments.store import StoreConfig
from tests.contract.backends import BUDGET_S, Backend
from tests.fakes import FakeReranker
from tests.handles import LocalHandle
from tests.models import make_tiny_cross_encoder

QUERY = "What makes the tides of the sea?"
TEXTS = (
    "Iron rusts in moist air.",
    "Many things happen at the coast. The tides of the sea are made by the moon.",
    "Bees make honey from nectar. A hive has one queen.",
    "",
    "What makes the tides of the sea?",
)
# The 8 bits of a stored sentence vector move a cosine by less than this.
INT8_TOLERANCE = 0.01

DOCUMENTS = (
    Document("coast", "Many things happen at the coast. The tides of the sea are made by the moon.", "The coast"),
    Document("bees", "Bees make honey from nectar. A hive has one queen.", "Bees"),
    Document("iron", "Iron rusts in moist air. Steel is iron with some carbon."),
)


async def rerank(reranker: Reranks, *candidates: Candidate, collection: str = "", query: str = QUERY) -> list[float]:
    scored = await reranker.rerank(RerankRequest(query, candidates, collection), BUDGET_S)
    assert scored.value.shape == (len(candidates),)
    assert scored.value.dtype == np.float32
    scores: list[float] = scored.value.tolist()
    return scores


@pytest.fixture(scope="session")
def cross_encoder_config(tmp_path_factory: pytest.TempPathFactory) -> RerankerConfig:
    model = make_tiny_cross_encoder(tmp_path_factory.mktemp("models"))
    return RerankerConfig(method="cross_encoder", model=str(model), dtype="float32")


def cross_encoder_stage(config: RerankerConfig, folder: Path) -> Reranker:
    return Reranker(config, StoreConfig(uri=str(folder)), embedder=None)


@pytest.fixture(scope="session")
def torch_cross_encoder(cross_encoder_config: RerankerConfig, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    return cross_encoder_stage(cross_encoder_config, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def openvino_cross_encoder(cross_encoder_config: RerankerConfig, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    config = cross_encoder_config.model_copy(update={"engine": "deployments.openvino_scorer:OpenVinoScorer"})
    return cross_encoder_stage(config, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def packed_cross_encoder(cross_encoder_config: RerankerConfig, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    config = cross_encoder_config.model_copy(update={"engine": "deployments.packed_scorer:PackedScorer"})
    return cross_encoder_stage(config, tmp_path_factory.mktemp("store"))


CROSS_ENCODERS = ("torch_cross_encoder", "openvino_cross_encoder", "packed_cross_encoder")


@pytest.fixture(params=CROSS_ENCODERS)
def cross_encoder(request: pytest.FixtureRequest) -> RemoteReranker:
    return RemoteReranker(LocalHandle(request.getfixturevalue(request.param)), HopConfig())


@pytest.fixture(params=["fake", "sentence_evidence", *CROSS_ENCODERS])
def reranker(request: pytest.FixtureRequest) -> Reranks:
    match request.param:
        case "fake":
            return FakeReranker()
        case "sentence_evidence":
            backend: Backend = request.getfixturevalue("meaningful")
            return backend.reranker
        case _:
            return RemoteReranker(LocalHandle(request.getfixturevalue(request.param)), HopConfig())


async def test_each_candidate_has_one_score_in_the_order_of_the_candidates(reranker: Reranks) -> None:
    candidates = [Candidate(text) for text in TEXTS]
    forwards = await rerank(reranker, *candidates)
    backwards = await rerank(reranker, *reversed(candidates))
    assert forwards == pytest.approx(backwards[::-1], abs=1e-4)
    assert len(set(forwards)) > 1


async def test_no_candidates_have_no_scores(reranker: Reranks) -> None:
    assert await rerank(reranker) == []


# Evidence weighs a word by how few of the candidates hold it.
@pytest.mark.parametrize("reranker", ["fake", *CROSS_ENCODERS], indirect=True)
async def test_a_candidate_scores_the_same_alone_and_among_others(reranker: Reranks) -> None:
    together = await rerank(reranker, *(Candidate(text) for text in TEXTS))
    alone = [(await rerank(reranker, Candidate(text)))[0] for text in TEXTS]
    assert together == pytest.approx(alone, abs=1e-4)


async def test_the_same_candidate_twice_has_the_same_score_twice(reranker: Reranks) -> None:
    first, *_, last = await rerank(reranker, *(Candidate(text) for text in (TEXTS[1], *TEXTS, TEXTS[1])))
    assert first == pytest.approx(last, abs=1e-4)


async def test_callers_at_the_same_time_get_their_own_scores(reranker: Reranks) -> None:
    queries = [f"Question {number}: {TEXTS[number % len(TEXTS)]}" for number in range(12)]
    candidates = [Candidate(text) for text in TEXTS]
    together = await asyncio.gather(*(rerank(reranker, *candidates, query=query) for query in queries))
    for query, scores in zip(queries, together, strict=True):
        assert scores == pytest.approx(await rerank(reranker, *candidates, query=query), abs=1e-4)


async def test_odd_and_very_long_candidates_are_scored(reranker: Reranks) -> None:
    odd = ("\x00", "👩‍👩‍👧‍👦", " \n ", "x" * 20_000, "tides " * 5_000, "[SEP] [CLS]", "\u202etides\u202c")
    scores = await rerank(reranker, *(Candidate(text) for text in odd))
    assert np.isfinite(scores).all()


async def test_without_time_left_nothing_is_scored(reranker: Reranks) -> None:
    with pytest.raises(DeadlineExceeded):
        await reranker.rerank(RerankRequest(QUERY, (Candidate(TEXTS[0]),)), 0.0)


async def stored(backend: Backend) -> list[Passage]:
    """All passages of DOCUMENTS, indexed in `docs`, by id."""
    await backend.fill("docs", *DOCUMENTS)
    vector = (await backend.embed(QUERY))[0]
    return sorted(await backend.search(SearchRequest("docs", 100, vector=vector)), key=lambda passage: passage.id)


def candidates_of(passages: Sequence[Passage]) -> list[Candidate]:
    return [Candidate(passage.text, passage.id, passage.title) for passage in passages]


def adhoc(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same texts and titles, stored nowhere."""
    return [replace(candidate, id="") for candidate in candidates]


def evidence(minilm: Embedder, folder: Path, **config: float) -> RemoteReranker:
    """A reranker by sentence evidence over a store in this folder."""
    reranker = RerankerConfig(evidence=EvidenceConfig.model_validate(config))
    return RemoteReranker(
        LocalHandle(Reranker(reranker, StoreConfig(uri=str(folder)), LocalHandle(minilm))), HopConfig()
    )


SENTENCES = ("Many things happen at the coast.", "The tides of the sea are made by the moon.")


async def test_evidence_of_vectors_is_the_cosine_of_the_best_sentence(
    meaningful: Backend, minilm: Embedder, tmp_path: Path
) -> None:
    question = (await meaningful.embedder.embed(EmbedRequest((QUERY,)), BUDGET_S)).value.vectors[0]
    expected = float((await meaningful.embed(*SENTENCES) @ question).max())
    (score,) = await rerank(evidence(minilm, tmp_path, coverage_weight=0), Candidate(" ".join(SENTENCES)))
    assert score == pytest.approx(expected, abs=INT8_TOLERANCE)


async def test_evidence_of_words_is_the_coverage_of_the_best_sentence(minilm: Embedder, tmp_path: Path) -> None:
    by_words = evidence(minilm, tmp_path, coverage_weight=1)
    whole, part, nothing = await rerank(by_words, *map(Candidate, (f"{SENTENCES[0]} {QUERY}", SENTENCES[1], "Bees.")))
    assert (whole, nothing) == pytest.approx((1.0, 0.0))
    assert 0.2 < part < 0.8


async def test_evidence_is_the_mean_of_vectors_and_words(meaningful: Backend, minilm: Embedder, tmp_path: Path) -> None:
    candidate = Candidate("The tides of the sea are made by the moon.")
    by_vector, by_words = [
        (await rerank(evidence(minilm, tmp_path, coverage_weight=weight), candidate))[0] for weight in (0, 1)
    ]
    (score,) = await rerank(meaningful.reranker, candidate)
    assert score == pytest.approx((by_vector + by_words) / 2, abs=1e-4)


async def test_evidence_tells_names_and_numbers_apart(meaningful: Backend) -> None:
    texts = [f"Sensor {number} was replaced in May." for number in ("E4710", "E4711", "E4712", "E4713")]
    scores = await rerank(meaningful.reranker, *map(Candidate, texts), query="When was E4711 replaced?")
    assert int(np.argmax(scores)) == 1
    assert scores[1] > max(scores[:1] + scores[2:]) + 0.1


async def test_evidence_counts_the_title_as_one_more_sentence(meaningful: Backend) -> None:
    text = "It is all a matter of gravity."
    titled, untitled = await rerank(
        meaningful.reranker, Candidate(text, title="What makes the tides of the sea"), Candidate(text)
    )
    assert titled > untitled + 0.3


async def test_evidence_ranks_the_passage_with_the_answer_first(meaningful: Backend) -> None:
    scores = await rerank(meaningful.reranker, *(Candidate(text) for text in TEXTS[:3]))
    assert int(np.argmax(scores)) == 1


async def test_evidence_of_a_stored_passage_equals_that_of_its_text(meaningful: Backend) -> None:
    passages = await stored(meaningful)
    candidates = candidates_of(passages)
    looked_up = await rerank(meaningful.reranker, *candidates, collection="docs")
    assert looked_up == pytest.approx(await rerank(meaningful.reranker, *adhoc(candidates)), abs=INT8_TOLERANCE)


async def test_evidence_of_a_stored_title_equals_that_of_the_title_given(meaningful: Backend) -> None:
    await meaningful.fill("docs", *DOCUMENTS, Document("titled", "All a matter of gravity.", QUERY.rstrip("?")))
    vector = (await meaningful.embed(QUERY))[0]
    candidates = candidates_of(await meaningful.search(SearchRequest("docs", 100, vector=vector)))
    looked_up = await rerank(meaningful.reranker, *candidates, collection="docs")
    assert looked_up == pytest.approx(await rerank(meaningful.reranker, *adhoc(candidates)), abs=INT8_TOLERANCE)
    assert candidates[int(np.argmax(looked_up))].id == "titled:0"


async def test_evidence_takes_stored_and_new_texts_together(meaningful: Backend) -> None:
    passages = await stored(meaningful)
    mixed = [Candidate(TEXTS[2])]
    for candidate in candidates_of(passages):
        mixed += [candidate, replace(candidate, id=""), replace(candidate, id="unknown:7")]
    scores = await rerank(meaningful.reranker, *mixed, collection="docs")
    assert scores == pytest.approx(await rerank(meaningful.reranker, *adhoc(mixed)), abs=INT8_TOLERANCE)


async def test_stored_evidence_needs_no_embedding_where_the_query_vector_is_given(
    meaningful: Backend, minilm: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = tuple(candidates_of(await stored(meaningful)))
    question = (await meaningful.embedder.embed(EmbedRequest((QUERY,)), BUDGET_S)).value.vectors[0]
    expected = await rerank(meaningful.reranker, *candidates, collection="docs")
    monkeypatch.setattr(minilm, "embed", None)
    scored = await meaningful.reranker.rerank(RerankRequest(QUERY, candidates, "docs", question), BUDGET_S)
    assert scored.value.tolist() == pytest.approx(expected, abs=1e-4)


async def test_where_the_embedder_fails_evidence_of_stored_passages_is_in_their_words(
    meaningful: Backend, minilm: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = candidates_of(await stored(meaningful))
    by_words = await rerank(evidence(minilm, tmp_path, coverage_weight=1), *candidates, collection="docs")
    monkeypatch.setattr(minilm, "embed", None)
    assert await rerank(meaningful.reranker, *candidates, collection="docs") == pytest.approx(by_words, abs=1e-4)
    with pytest.raises(StageError):
        await rerank(meaningful.reranker, *adhoc(candidates))


@pytest.mark.parametrize("text", ["", " \n\t "])
async def test_a_text_without_a_sentence_has_no_evidence(meaningful: Backend, text: str) -> None:
    assert (await rerank(meaningful.reranker, Candidate(text), Candidate(TEXTS[1])))[0] == 0


async def test_evidence_is_that_of_the_text_given_when_its_document_was_replaced(meaningful: Backend) -> None:
    coast = next(passage for passage in await stored(meaningful) if passage.document_id == "coast")
    (candidate,) = candidates_of([coast])
    before = await rerank(meaningful.reranker, candidate, collection="docs")
    await meaningful.fill("docs", Document("coast", "Nothing but dunes and wind here."))
    assert await rerank(meaningful.reranker, candidate, collection="docs") == pytest.approx(before, abs=INT8_TOLERANCE)
    replaced = Candidate("Nothing but dunes and wind here.", coast.id)
    (after,) = await rerank(meaningful.reranker, replaced, collection="docs")
    assert after < before[0] - 0.1


async def test_evidence_of_a_collection_made_anew_is_not_that_of_the_old_one(meaningful: Backend) -> None:
    passages = await stored(meaningful)
    await rerank(meaningful.reranker, *candidates_of(passages), collection="docs")
    for texts in (("Sand and wind.", "Flour and water."), ("Rain and clouds.", "Salt and pepper.")):
        await meaningful.indexer.delete_collection("docs")
        await meaningful.fill("docs", Document("coast", texts[0]), Document("bees", texts[1]))
        by_id = (Candidate(texts[0], "coast:0"), Candidate(texts[1], "bees:0"))
        scores = await rerank(meaningful.reranker, *by_id, collection="docs")
        of_texts = await rerank(meaningful.reranker, *adhoc(by_id))
        assert scores == pytest.approx(of_texts, abs=INT8_TOLERANCE)


async def test_evidence_from_an_unknown_collection_is_not_found(meaningful: Backend) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        await rerank(meaningful.reranker, Candidate("Some text.", "a:0"), collection="nowhere")


async def test_evidence_stays_right_when_its_cache_holds_next_to_nothing(
    meaningful: Backend, minilm: Embedder, tmp_path: Path
) -> None:
    candidates = candidates_of(await stored(meaningful))
    small = evidence(minilm, tmp_path, cache_bytes=500)
    expected = await rerank(meaningful.reranker, *candidates, collection="docs")
    for _ in range(3):
        assert await rerank(small, *candidates, collection="docs") == pytest.approx(expected, abs=1e-4)


async def test_cross_encoder_scores_equal_those_of_the_reference_library(
    cross_encoder: RemoteReranker, cross_encoder_config: RerankerConfig
) -> None:
    from sentence_transformers import CrossEncoder

    texts = [*TEXTS, "A long text about the moon. " * 100, "😀 数据 \x00"]
    reference = CrossEncoder(cross_encoder_config.model, device="cpu")
    expected = reference.predict([(QUERY, text) for text in texts], show_progress_bar=False)
    ours = await rerank(cross_encoder, *(Candidate(text) for text in texts))
    assert ours == pytest.approx(expected.tolist(), abs=1e-4)


async def test_cross_encoder_reads_the_title_before_the_text(cross_encoder: RemoteReranker) -> None:
    titled, joined, bare = await rerank(
        cross_encoder,
        Candidate("The moon does it.", title="Tides"),
        Candidate("Tides\nThe moon does it."),
        Candidate("The moon does it."),
    )
    assert titled == pytest.approx(joined, abs=1e-4)
    assert titled != pytest.approx(bare, abs=1e-4)
