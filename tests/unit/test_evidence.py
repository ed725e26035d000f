"""Sentence evidence: int8 vectors, what a sentence scores, and where the sentences of a passage come from."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from msgspec.structs import replace

from deployments.contracts import Candidate, EmbedRequest, Vector
from deployments.errors import (
    ConfigError,
    DeadlineExceeded,
    EngineFailed,
    InputTooLong,
    InvalidInput,
    NotFound,
    Overloaded,
    StageError,
    StageUnavailable,
)
from deployments.evidence import (
    TEXTS_PER_REQUEST,
    EvidenceConfig,
    Int8Vectors,
    Scored,
    SentenceEvidence,
    Sentences,
    quantise,
)
from deployments.ingestion.sentences import split_sentences
from deployments.lexical import Terms
from deployments.store import StoreConfig
from tests.fakes import FakeEmbedder

DIM = 48
BUDGET_S = 60.0
# The 8 bits of a stored vector move a cosine by less than this, and half of it is a score.
INT8_TOLERANCE = 0.01

# Components of about one size: the worst of a real embedding has components up to ten times the mean.
vectors = npst.arrays(np.float32, (3, DIM), elements=st.floats(-1, 1, width=32)).filter(
    lambda rows: bool((np.abs(rows).max(axis=1) > 1e-3).all())
)


def unit(rows: Vector) -> Vector:
    scaled: Vector = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def sentences_of(rows: Vector) -> Sentences:
    spans = np.array([(10 * n, 10 * n + 9) for n in range(len(rows))], np.int32).reshape(-1, 2)
    stems: list[Terms] = [np.array([n, n + 1], np.uint32) for n in range(len(rows))]
    return Sentences.of(spans, quantise(rows), stems)


@given(vectors, vectors)
def test_cosines_of_int8_vectors_are_within_the_rounding_of_their_components(rows: Vector, queries: Vector) -> None:
    rows, query = unit(rows), unit(queries)[0]
    scores = sentences_of(rows).similarities(query)
    # Rounding moves each component by at most half a step of largest/127, so the vector by √dim times that; the angle
    # to the true direction, and with it any cosine, moves by no more than the chord between the unit vectors.
    steps = np.abs(rows).max(axis=1) / 127
    bound = 2 * np.sqrt(DIM) * 0.5 * steps + 1e-5
    assert (np.abs(scores - rows @ query) <= bound).all()


@given(vectors)
def test_the_largest_component_becomes_127_and_signs_are_kept(rows: Vector) -> None:
    quantised = quantise(rows)
    assert quantised.dtype == np.int8
    assert (np.abs(quantised.astype(int)).max(axis=1) == 127).all()
    assert (np.sign(quantised) * np.sign(rows) >= 0).all()


def test_vectors_of_zeros_and_no_vectors_are_quantised_to_themselves() -> None:
    assert quantise(np.zeros((2, DIM), np.float32)).tolist() == [[0] * DIM] * 2
    assert quantise(np.zeros((0, DIM), np.float32)).shape == (0, DIM)


def test_the_norm_is_that_of_the_int8_vector_so_that_a_sentence_is_its_own_best_match() -> None:
    rows = unit(np.random.default_rng(0).standard_normal((5, DIM)).astype(np.float32))
    sentences = sentences_of(rows)
    norms = np.linalg.norm(sentences.vectors.astype(np.float32), axis=1)
    assert sentences.inverse_norms == pytest.approx(1 / norms, rel=1e-6)
    own = unit(sentences.vectors.astype(np.float32))
    for index in range(5):
        assert sentences.similarities(own[index])[index] == pytest.approx(1.0, abs=1e-5)


def test_a_sentence_of_zeros_has_no_similarity() -> None:
    query = unit(np.ones((1, DIM), np.float32))[0]
    assert sentences_of(np.zeros((1, DIM), np.float32)).similarities(query).tolist() == [0.0]


def test_the_memory_of_sentences_is_that_of_their_arrays() -> None:
    sentences = sentences_of(np.ones((4, DIM), np.float32))
    spans, components, inverse_norms, stems, num_stems = 4 * 2 * 4, 4 * DIM, 4 * 4, 8 * 4, 4 * 8
    assert sentences.num_bytes == spans + components + inverse_norms + stems + num_stems


def scored(*scores: float, title_score: float | None = None) -> Scored:
    return Scored(np.zeros((len(scores), 2), np.int32), np.array(scores, np.float32), title_score)


@pytest.mark.parametrize(
    ("sentences", "best"),
    [
        (scored(0.25, 0.75, 0.5), 0.75),
        (scored(0.25, title_score=0.5), 0.5),
        (scored(0.75, title_score=0.5), 0.75),
        (scored(title_score=0.5), 0.5),
        (scored(-0.25, title_score=-0.5), 0.0),
        (scored(), 0.0),
    ],
)
def test_the_best_of_the_sentences_and_the_title_speaks_for_a_passage(sentences: Scored, best: float) -> None:
    assert sentences.best == best


QUERY = "What makes the tides of the sea?"
COAST = Candidate("Many things happen at the coast. The tides of the sea are made by the moon.", "coast:0", "The coast")
BEES = Candidate("Bees make honey from nectar. A hive has one queen.", "bees:0", "Honey bees")
IRON = Candidate("Iron rusts in moist air. Steel is iron with some carbon.", "iron:0")
NAMED = Candidate("", "named:0", "Tides of the sea")
EMPTY = Candidate("", "empty:0")
STORED = (COAST, BEES, IRON, NAMED, EMPTY)
LONG_SENTENCE = f"And so {' '.join(['tides' * 16] * 6)} come and go. "

COLUMNS = [
    pa.field("id", pa.string()),
    pa.field("text", pa.string()),
    pa.field("title", pa.string()),
    pa.field("sentence_spans", pa.list_(pa.int32())),
    pa.field("sentence_vectors", pa.binary()),
    pa.field("title_vector", pa.binary()),
]


@dataclass
class Library:
    """A store and an embedder, and evidence from both."""

    store: StoreConfig
    embedder: FakeEmbedder = field(default_factory=FakeEmbedder)

    def evidence(self, **config: Any) -> SentenceEvidence:
        return SentenceEvidence(self.store, self.embedder, EvidenceConfig.model_validate(config))

    async def put(self, *passages: Candidate, title_vectors: bool = True, no_title: bytes | None = None) -> None:
        """Make the collection `docs` of the passages; without `title_vectors` as it was made before there were any."""
        rows = [
            {
                "id": passage.id,
                "text": passage.text,
                "title": passage.title,
                "sentence_spans": [offset for span in split_sentences(passage.text) for offset in span],
                "sentence_vectors": (await self.int8(*sentences_in(passage))).tobytes(),
                "title_vector": (await self.int8(passage.title)).tobytes() if passage.title else no_title,
            }
            for passage in passages
        ]
        fields = COLUMNS if title_vectors else COLUMNS[:-1]
        table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
        await (await self.connection()).create_table("docs", table, mode="overwrite")
        self.embedder.requests.clear()

    async def drop(self) -> None:
        await (await self.connection()).drop_table("docs")

    async def connection(self) -> Any:
        return await lancedb.connect_async(self.store.uri)

    async def embed(self, *texts: str) -> Vector:
        return (await self.embedder.embed(EmbedRequest(texts, "passage"), BUDGET_S)).value.vectors

    async def int8(self, *texts: str) -> Int8Vectors:
        return quantise(await self.embed(*texts))

    async def query_vector(self, query: str = QUERY) -> Vector:
        vector: Vector = (await self.embed(query))[0]
        self.embedder.requests.clear()
        return vector


def sentences_in(passage: Candidate) -> list[str]:
    return [passage.text[start:end] for start, end in split_sentences(passage.text)]


def adhoc(*candidates: Candidate) -> tuple[Candidate, ...]:
    """The same texts and titles, stored nowhere."""
    return tuple(replace(candidate, id="") for candidate in candidates)


def numbers(scored: Sequence[Scored]) -> list[list[float]]:
    """The spans, the scores and the score of the title of each candidate, as one list of numbers."""
    return [
        [*one.spans.ravel().tolist(), *one.scores.tolist(), -9.0 if one.title_score is None else one.title_score]
        for one in scored
    ]


def alike(some: Sequence[Scored], others: Sequence[Scored], tolerance: float = 1e-5) -> bool:
    return all(
        len(one) == len(other) and one == pytest.approx(other, abs=tolerance)
        for one, other in zip(numbers(some), numbers(others), strict=True)
    )


async def score(
    evidence: SentenceEvidence, *candidates: Candidate, vector: Vector | None = None, query: str = QUERY
) -> list[Scored]:
    return await evidence.score(vector, query, candidates, "docs", BUDGET_S)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(StoreConfig(uri=str(tmp_path)))


async def test_vectors_alone_score_a_sentence_with_its_cosine(library: Library) -> None:
    (coast,) = await score(library.evidence(coverage_weight=0), *adhoc(COAST))
    cosines = await library.embed(*sentences_in(COAST), COAST.title) @ await library.query_vector()
    assert [*coast.scores.tolist(), coast.title_score] == pytest.approx(cosines.tolist(), abs=INT8_TOLERANCE)
    assert coast.spans.tolist() == [list(span) for span in split_sentences(COAST.text)]


async def test_words_alone_score_a_sentence_with_the_share_of_the_question_that_it_covers(library: Library) -> None:
    texts = ("The moon makes the tides of the sea, and what not.", "Nobody says a word.", "The sea is wide and deep.")
    whole, none, part = await score(library.evidence(coverage_weight=1), *map(Candidate, texts))
    assert whole.best == pytest.approx(1.0)
    assert none.best == 0.0
    assert 0.0 < part.best < 0.5


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.9])
async def test_a_score_is_the_weighted_mean_of_coverage_and_similarity(library: Library, weight: float) -> None:
    mean, similar, shared = [
        await score(library.evidence(coverage_weight=one), *adhoc(*STORED)) for one in (weight, 0.0, 1.0)
    ]
    for one, vectors, words in zip(mean, similar, shared, strict=True):
        expected = (1 - weight) * vectors.scores + weight * words.scores
        assert one.scores == pytest.approx(expected, abs=1e-5)


async def test_by_default_words_and_vectors_count_the_same(library: Library) -> None:
    by_default = await score(library.evidence(), *adhoc(*STORED))
    assert alike(by_default, await score(library.evidence(coverage_weight=0.5), *adhoc(*STORED)))


async def test_a_word_that_few_candidates_hold_weighs_more(library: Library) -> None:
    common = [Candidate(f"The turbine of hall {number} has run.") for number in "abcdef"]
    rare = Candidate("Sensor E4711 was replaced.")
    found = await score(library.evidence(coverage_weight=1), *common, rare, query="turbine E4711")
    assert found[-1].best > max(one.best for one in found[:-1]) + 0.3


async def test_a_word_is_no_more_common_for_standing_in_several_sentences_of_a_candidate(library: Library) -> None:
    turbines = Candidate("A turbine runs here. One turbine stands still. Another turbine is gone.")
    evidence = library.evidence(coverage_weight=1)
    found = await score(evidence, turbines, Candidate("The pump runs well."), query="turbine pump")
    assert [one.scores.tolist() for one in found] == [pytest.approx([0.5] * 3), pytest.approx([0.5])]


async def test_words_match_by_the_stems_of_the_configured_language(library: Library) -> None:
    candidate = Candidate("Die Häuser stehen dicht.")
    for language, best in (("german", 1.0), ("english", 0.0)):
        (found,) = await score(library.evidence(coverage_weight=1, language=language), candidate, query="Haus")
        assert found.best == pytest.approx(best)


def test_a_language_without_a_stemmer_is_refused_at_the_start(library: Library) -> None:
    with pytest.raises(ConfigError, match="klingon"):
        library.evidence(language="klingon")


async def test_the_title_counts_as_one_more_sentence(library: Library) -> None:
    text = "It is a matter of gravity and of time."
    titled, untitled, spoken = await score(
        library.evidence(),
        Candidate(text, title="The tides of the sea"),
        Candidate(text),
        Candidate("The tides of the sea"),
    )
    assert untitled.title_score is None
    assert titled.scores == pytest.approx(untitled.scores, abs=1e-5)
    assert titled.title_score == pytest.approx(spoken.best, abs=1e-5)
    assert titled.best == titled.title_score
    assert titled.best > untitled.best + 0.3


async def test_a_title_of_white_space_is_none(library: Library) -> None:
    blank, untitled = await score(library.evidence(), Candidate(COAST.text, title=" \n"), Candidate(COAST.text))
    assert blank.title_score is None
    assert alike([blank], [untitled])


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_passage_that_has_only_a_title_is_scored_by_it(library: Library, is_stored: bool) -> None:
    await library.put(NAMED, EMPTY)
    candidates = (NAMED, EMPTY) if is_stored else adhoc(NAMED, EMPTY)
    named, empty = await score(library.evidence(), *candidates)
    assert named.spans.shape == empty.spans.shape == (0, 2)
    assert len(named.scores) == 0
    assert named.title_score is not None
    assert named.best == named.title_score > 0.5
    assert (empty.title_score, empty.best) == (None, 0.0)


@pytest.mark.parametrize("no_title", [None, b""])
async def test_stored_passages_score_as_their_texts_do(library: Library, no_title: bytes | None) -> None:
    await library.put(*STORED, no_title=no_title)
    looked_up = await score(library.evidence(), *STORED)
    assert [request.role for request in library.embedder.requests] == ["query"]
    assert alike(looked_up, await score(library.evidence(), *adhoc(*STORED)))


async def test_in_a_collection_without_title_vectors_titles_do_not_count(library: Library) -> None:
    await library.put(*STORED, title_vectors=False)
    untitled = [replace(candidate, title="") for candidate in STORED]
    looked_up = await score(library.evidence(), *STORED)
    assert [one.title_score for one in looked_up] == [None] * len(STORED)
    assert alike(looked_up, await score(library.evidence(), *adhoc(*untitled)))


async def test_stored_and_new_texts_are_scored_together_in_the_order_of_the_candidates(library: Library) -> None:
    await library.put(*STORED)
    mixed = (IRON, *adhoc(COAST), COAST, replace(BEES, id="unknown:7"), EMPTY, COAST, *adhoc(NAMED, BEES), BEES)
    assert alike(await score(library.evidence(), *mixed), await score(library.evidence(), *adhoc(*mixed)))


async def test_without_a_collection_every_text_is_new(library: Library) -> None:
    scored = await library.evidence().score(None, QUERY, STORED, "", BUDGET_S)
    assert alike(scored, await score(library.evidence(), *adhoc(*STORED)))


async def test_no_candidates_have_no_scores(library: Library) -> None:
    assert await score(library.evidence()) == []


async def test_as_many_stored_passages_are_looked_up_as_there_are(library: Library) -> None:
    many = [Candidate(f"Passage {number} tells of the sea.", f"many:{number}") for number in range(300)]
    await library.put(*many)
    await score(library.evidence(), *many, vector=await library.query_vector())
    assert library.embedder.requests == []


async def test_an_unknown_collection_is_not_found(library: Library) -> None:
    with pytest.raises(NotFound, match="docs"):
        await score(library.evidence(), COAST)


async def test_nothing_is_embedded_where_the_passages_are_stored_and_the_query_vector_is_given(
    library: Library,
) -> None:
    await library.put(*STORED)
    expected = await score(library.evidence(), *STORED)
    vector = await library.query_vector()
    assert alike(await score(library.evidence(), *STORED, vector=vector), expected)
    assert library.embedder.requests == []


async def test_many_new_texts_are_embedded_in_slices_and_give_way_to_questions(library: Library) -> None:
    words = " ".join(f"Sentence number {number} stands here alone." for number in range(TEXTS_PER_REQUEST + 5))
    vector = await library.query_vector()
    await score(library.evidence(), Candidate(words), Candidate("One more of them.", title="Short"), vector=vector)
    assert [len(request.texts) for request in library.embedder.requests] == [TEXTS_PER_REQUEST, 7]
    assert {(request.role, request.priority) for request in library.embedder.requests} == {("passage", "bulk")}


async def test_nobody_waits_for_the_sentences_of_many_new_texts(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    await library.put(*STORED)
    evidence = library.evidence()
    expected = await score(library.evidence(), *STORED, *adhoc(COAST))
    begun, goes_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    waited: list[bool] = []

    def split(text: str) -> list[tuple[int, int]]:
        if text.startswith("Many texts."):
            loop.call_soon_threadsafe(begun.set)
            waited.append(goes_on.wait(BUDGET_S))
        return split_sentences(text)

    monkeypatch.setattr("deployments.evidence.split_sentences", split)
    many = asyncio.create_task(score(evidence, Candidate("Many texts. " + LONG_SENTENCE * 300)))
    await begun.wait()
    assert alike(await score(evidence, *STORED, *adhoc(COAST)), expected)
    assert not many.done()
    goes_on.set()
    await many
    assert waited == [True]


async def test_new_texts_of_several_slices_score_as_they_do_one_by_one(library: Library) -> None:
    candidates = [Candidate(f"Text {n} is long. {LONG_SENTENCE * 120}", title=f"Title {n}") for n in range(4)]
    evidence = library.evidence(coverage_weight=0)
    together = await score(evidence, *candidates, *adhoc(COAST))
    assert alike(together, [(await score(evidence, one))[0] for one in (*candidates, *adhoc(COAST))])


@pytest.mark.parametrize("error", [StageUnavailable("x"), EngineFailed("x"), DeadlineExceeded("x"), Overloaded("x")])
async def test_where_the_embedder_fails_stored_passages_are_scored_by_their_words(
    library: Library, error: StageError
) -> None:
    await library.put(*STORED)
    by_words = await score(library.evidence(coverage_weight=1), *STORED)
    library.embedder.faults.error = error
    assert alike(await score(library.evidence(), *STORED), by_words)
    assert by_words[0].best > max(one.best for one in by_words[1:3])


@pytest.mark.parametrize("others", [(), (COAST,), (COAST, replace(IRON, text="Replaced since."))])
async def test_where_the_embedder_fails_new_texts_fail(library: Library, others: tuple[Candidate, ...]) -> None:
    await library.put(*STORED)
    vector = await library.query_vector()
    library.embedder.faults.error = EngineFailed("the embedder is out of order")
    for query_vector in (None, vector):
        with pytest.raises(EngineFailed, match="out of order"):
            await score(library.evidence(), *others, *adhoc(BEES), vector=query_vector)


async def test_where_the_embedder_fails_a_passage_that_was_replaced_has_nothing_and_the_others_their_scores(
    library: Library,
) -> None:
    await library.put(*STORED)
    vector = await library.query_vector()
    replaced = replace(BEES, text="Bees make honey by the tides of the sea.")
    expected = await score(library.evidence(), COAST, IRON, vector=vector)
    library.embedder.faults.error = StageUnavailable("the embedder is starting")
    coast, gone, iron = await score(library.evidence(), COAST, replaced, IRON, vector=vector)
    assert alike([coast, iron], expected)
    assert (gone.spans.shape, len(gone.scores), gone.title_score, gone.best) == ((0, 2), 0, None, 0.0)


@pytest.mark.parametrize("error", [InvalidInput("bad text"), InputTooLong("bad text")])
async def test_input_that_the_embedder_refuses_is_refused(library: Library, error: InvalidInput) -> None:
    await library.put(*STORED)
    vector = await library.query_vector()
    library.embedder.faults.error = error
    with pytest.raises(type(error), match="bad text"):
        await score(library.evidence(), COAST)
    with pytest.raises(type(error), match="bad text"):
        await score(library.evidence(), replace(COAST, text="Replaced since."), vector=vector)


async def test_new_texts_are_not_embedded_past_the_budget(library: Library) -> None:
    with pytest.raises(DeadlineExceeded):
        await library.evidence().score(await library.query_vector(), QUERY, adhoc(COAST), "", 0.0)


@pytest.mark.parametrize("changed", [{"text": "Nothing but dunes and wind here."}, {"title": "The tides of the sea"}])
async def test_a_passage_whose_document_was_replaced_is_scored_as_it_was_found(
    library: Library, changed: dict[str, str]
) -> None:
    after = replace(COAST, **changed)
    expected = [await score(library.evidence(), *adhoc(one)) for one in (COAST, after)]
    evidence = library.evidence()
    await library.put(COAST)
    assert alike(await score(evidence, COAST), expected[0])
    assert alike(await score(evidence, after), expected[1])
    await library.put(after)
    for _ in range(2):
        assert alike(await score(evidence, COAST), expected[0])
        assert alike(await score(evidence, after), expected[1])
        assert alike(await score(library.evidence(), COAST), expected[0])


async def test_a_passage_that_was_scored_before_is_not_read_again(library: Library) -> None:
    await library.put(*STORED)
    evidence = library.evidence()
    expected = await score(evidence, *STORED)
    await library.drop()
    assert alike(await score(evidence, *STORED), expected)


async def test_another_collection_has_passages_of_its_own(library: Library) -> None:
    await library.put(*STORED)
    evidence = library.evidence()
    await score(evidence, *STORED)
    with pytest.raises(NotFound, match="elsewhere"):
        await evidence.score(None, QUERY, STORED, "elsewhere", BUDGET_S)


async def test_no_more_is_remembered_than_the_cache_may_hold(library: Library) -> None:
    one, other = (Candidate(f"Number {number} tells of the sea.", f"{number}:0") for number in range(2))
    await library.put(one, other)
    room_for_one = library.evidence(cache_bytes=600)
    expected = await score(room_for_one, one, other)
    for _ in range(3):
        assert alike(await score(room_for_one, one, other), expected)
    (kept,) = await score(room_for_one, other)
    await library.drop()
    assert alike(await score(room_for_one, other), [kept])
    with pytest.raises(NotFound):
        await score(room_for_one, one)


async def test_without_a_cache_every_passage_is_read_each_time(library: Library) -> None:
    await library.put(COAST)
    evidence = library.evidence(cache_bytes=0)
    await score(evidence, COAST)
    await library.drop()
    with pytest.raises(NotFound):
        await score(evidence, COAST)
