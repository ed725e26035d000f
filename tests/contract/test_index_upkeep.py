"""The indexes of the real store: made, kept covering what is written, and no search is wrong meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import lancedb
import pytest

from deployments.contracts import Document, SearchRequest, Vector
from deployments.embedder import Embedder, EmbedderConfig
from deployments.errors import InvalidInput
from deployments.hop import HopConfig
from deployments.indexer import Indexer, IndexerConfig
from deployments.indexes import TextIndexConfig
from deployments.remote import RemoteRetriever
from deployments.retriever import Retriever, RetrieverConfig
from deployments.store import StoreConfig
from tests.contract.backends import BUDGET_S, NEVER_S, Backend
from tests.handles import LocalHandle

ALL_COVERED = {"document_id": 1.0, "id": 1.0, "text": 1.0}

MakeIndexer = Callable[..., Indexer]


@pytest.fixture
async def make_indexer(tiny: Embedder, tiny_config: EmbedderConfig, tmp_path: Path) -> AsyncIterator[MakeIndexer]:
    """Indexers of one store, as a restart makes them; they are closed at the end."""
    made = []

    def make(**config: Any) -> Indexer:
        indexing = IndexerConfig.model_validate({"maintain_after_s": NEVER_S, **config})
        made.append(Indexer(indexing, StoreConfig(uri=str(tmp_path)), tiny_config.model, LocalHandle(tiny)))
        return made[-1]

    yield make
    for indexer in made:
        await indexer.close()


@pytest.fixture
def retriever(tmp_path: Path) -> RemoteRetriever:
    return RemoteRetriever(
        LocalHandle(Retriever(RetrieverConfig(nprobes=3), StoreConfig(uri=str(tmp_path)))), HopConfig()
    )


def documents(count: int, start: int = 0) -> list[Document]:
    return [Document(f"d{n:04d}", f"text {n} of number{n % 7}") for n in range(start, start + count)]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what happens in the background; the test's own time limit ends the wait."""
    while not await holds():  # noqa: ASYNC110 - the store has no event to wait for
        await asyncio.sleep(0.02)


async def coverage_of(indexer: Indexer) -> dict[str, float]:
    return (await indexer.coverage())["docs"]


async def open_table(folder: Path) -> Any:
    return await (await lancedb.connect_async(folder)).open_table("docs")


async def found_by_words(retriever: RemoteRetriever, text: str, k: int = 1000) -> set[str]:
    result = (await retriever.search(SearchRequest("docs", k, "text", text=text), BUDGET_S)).value
    return {passage.document_id for passage in result.passages}


async def test_a_new_collection_is_covered_and_says_so(stages: Backend) -> None:
    made = await stages.indexer.create_collection("docs")
    assert made.index_coverage["text"] == 1.0
    assert set(made.index_coverage.values()) == {1.0}


async def test_what_is_written_is_uncovered_until_nothing_is_written_for_a_while(make_indexer: MakeIndexer) -> None:
    indexer = make_indexer()
    await indexer.index("docs", documents(10), BUDGET_S)
    assert set((await coverage_of(indexer)).values()) == {0.0}
    (info,) = await indexer.list_collections()
    assert info.index_coverage == await coverage_of(indexer)
    indexer = make_indexer(maintain_after_s=0.05)
    await indexer.index("docs", documents(10, 10), BUDGET_S)

    async def covered() -> bool:
        return await coverage_of(indexer) == ALL_COVERED

    await until(covered)
    await indexer.delete_document("docs", "d0003")
    await indexer.index("docs", [Document("d0004", "replaced"), Document("new", "text")], BUDGET_S)
    await until(covered)
    (info,) = await indexer.list_collections()
    assert info.index_coverage == ALL_COVERED
    assert info.num_documents == 20


async def test_after_so_many_commits_the_table_is_compacted_and_covered(
    make_indexer: MakeIndexer, retriever: RemoteRetriever, tmp_path: Path
) -> None:
    indexer = make_indexer(commits_per_optimize=5)
    await indexer.index("docs", documents(1), BUDGET_S)
    for number in range(1, 5):
        await indexer.index("docs", documents(1, number), BUDGET_S)

    async def covered() -> bool:
        return await coverage_of(indexer) == ALL_COVERED

    await until(covered)
    assert (await (await open_table(tmp_path)).stats())["fragment_stats"]["num_fragments"] == 1
    assert len(await found_by_words(retriever, "text")) == 5


async def test_too_large_an_uncovered_share_is_indexed_at_once(make_indexer: MakeIndexer) -> None:
    indexer = make_indexer(max_unindexed_share=0.5, min_unindexed_rows=8)
    await indexer.index("docs", documents(7), BUDGET_S)
    assert set((await coverage_of(indexer)).values()) == {0.0}
    await indexer.index("docs", documents(1, 7), BUDGET_S)

    async def covered() -> bool:
        return await coverage_of(indexer) == ALL_COVERED

    await until(covered)
    await indexer.index("docs", documents(8, 8), BUDGET_S)
    assert (await coverage_of(indexer))["text"] == 0.5


@pytest.mark.parametrize("asked", ["describe", "coverage"])
async def test_a_restarted_indexer_covers_what_its_predecessor_left(make_indexer: MakeIndexer, asked: str) -> None:
    before = make_indexer()
    await before.index("docs", documents(10), BUDGET_S)
    await before.close()
    after = make_indexer()
    await getattr(after, asked)()

    async def covered() -> bool:
        (info,) = await after.list_collections()
        return info.index_coverage == ALL_COVERED

    await until(covered)


async def test_a_restarted_indexer_that_is_asked_again_and_again_catches_up_once(
    make_indexer: MakeIndexer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_indexer().index("docs", documents(10), BUDGET_S)
    optimized = 0
    optimize = lancedb.AsyncTable.optimize

    async def counted(table: Any, **options: Any) -> Any:
        nonlocal optimized
        optimized += 1
        return await optimize(table, **options)

    monkeypatch.setattr(lancedb.AsyncTable, "optimize", counted)
    after = make_indexer()
    await asyncio.gather(*(after.coverage() for _ in range(5)), after.describe())

    async def covered() -> bool:
        return await coverage_of(after) == ALL_COVERED

    await until(covered)
    await after.coverage()
    await after.close()
    assert optimized == 1


async def test_a_restarted_indexer_catches_up_although_it_has_no_embedder(
    make_indexer: MakeIndexer, tiny_config: EmbedderConfig, tmp_path: Path
) -> None:
    await make_indexer().index("docs", documents(10), BUDGET_S)
    config = IndexerConfig(maintain_after_s=NEVER_S)
    after = Indexer(config, StoreConfig(uri=str(tmp_path)), tiny_config.model, LocalHandle(object()))

    async def covered() -> bool:
        return await coverage_of(after) == ALL_COVERED

    await until(covered)
    await after.close()


async def test_a_restarted_indexer_brings_a_collection_from_before_text_search_up_to_date(
    make_indexer: MakeIndexer, retriever: RemoteRetriever, tmp_path: Path
) -> None:
    await make_indexer().index("docs", documents(10), BUDGET_S)
    table = await open_table(tmp_path)
    for index in await table.list_indices():
        await table.drop_index(index.name)
    await table.drop_columns(["search_text"])
    after = make_indexer()
    assert set((await coverage_of(after)).values()) == {0.0}
    await after.describe()

    async def covered() -> bool:
        return await coverage_of(after) == ALL_COVERED

    await until(covered)
    assert await found_by_words(retriever, "number3") == {"d0003"}


async def test_other_options_make_the_text_index_anew(
    make_indexer: MakeIndexer, retriever: RemoteRetriever, tmp_path: Path
) -> None:
    await make_indexer().index("docs", [Document("a", "She was running"), Document("b", "Der Läufer")], BUDGET_S)
    assert await found_by_words(retriever, "runs the") == {"a"}
    after = make_indexer(text_index={"stem": False, "remove_stop_words": False, "ascii_folding": False})
    await after.describe()

    async def rebuilt() -> bool:
        return await found_by_words(retriever, "runs Laufer") == set()

    await until(rebuilt)
    assert await found_by_words(retriever, "was") == {"a"}
    assert await found_by_words(retriever, "läufer") == {"b"}
    await after.index("docs", [Document("c", "running again")], BUDGET_S)
    assert await found_by_words(retriever, "running") == {"a", "c"}


@pytest.mark.parametrize("options", [{"language": "German"}, {"base_tokenizer": "icu"}, {"max_token_length": 5}])
def test_options_of_the_text_index_can_be_set(options: dict[str, Any]) -> None:
    assert TextIndexConfig.model_validate(options).model_dump().items() >= options.items()


@pytest.mark.parametrize("options", [{"language": "Klingon"}, {"base_tokenizer": "ngrams"}, {"max_token_length": 0}])
def test_options_that_no_text_index_has_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        TextIndexConfig.model_validate(options)


async def test_words_are_found_in_a_language_without_spaces(
    make_indexer: MakeIndexer, retriever: RemoteRetriever
) -> None:
    indexer = make_indexer(text_index={"base_tokenizer": "icu"})
    await indexer.index("docs", [Document("a", "我爱北京天安门"), Document("b", "上海是一个城市")], BUDGET_S)
    assert await found_by_words(retriever, "北京") == {"a"}


async def test_maintenance_that_fails_loses_nothing_and_is_tried_again(
    make_indexer: MakeIndexer, retriever: RemoteRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0
    optimize = lancedb.AsyncTable.optimize

    async def failing(table: Any, **options: Any) -> Any:
        nonlocal failures
        if failures < 3:
            failures += 1
            raise RuntimeError("the disk is full")
        return await optimize(table, **options)

    monkeypatch.setattr(lancedb.AsyncTable, "optimize", failing)
    indexer = make_indexer(maintain_after_s=0.02)
    assert (await indexer.index("docs", documents(10), BUDGET_S)).indexed
    assert len(await found_by_words(retriever, "text")) == 10

    async def covered() -> bool:
        return await coverage_of(indexer) == ALL_COVERED

    await until(covered)
    assert failures == 3
    assert len(await found_by_words(retriever, "text")) == 10


async def test_a_collection_whose_indexes_can_not_be_made_is_made_all_the_same(
    make_indexer: MakeIndexer, retriever: RemoteRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(table: Any, *arguments: Any, **options: Any) -> None:
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(lancedb.AsyncTable, "create_index", failing)
        indexer = make_indexer(maintain_after_s=0.02)
        await indexer.create_collection("docs")
        await indexer.index("docs", documents(10), BUDGET_S)
        assert await found_by_words(retriever, "number3") == {"d0003"}

    async def covered() -> bool:
        return await coverage_of(indexer) == ALL_COVERED

    await until(covered)
    assert await found_by_words(retriever, "numbers number3") == {"d0003"}


async def test_a_collection_may_be_deleted_while_its_maintenance_is_due(make_indexer: MakeIndexer) -> None:
    indexer = make_indexer(maintain_after_s=0.01, commits_per_optimize=1)
    for _ in range(5):
        await indexer.index("docs", documents(3), BUDGET_S)
        await indexer.delete_collection("docs")
    await asyncio.sleep(0.05)
    assert await indexer.list_collections() == []
    assert await indexer.coverage() == {}


async def test_a_closed_indexer_has_ended_what_it_began(make_indexer: MakeIndexer) -> None:
    indexer = make_indexer(commits_per_optimize=1)
    writing = [asyncio.ensure_future(indexer.index("docs", documents(2, n), BUDGET_S)) for n in range(0, 10, 2)]
    await asyncio.gather(*writing)
    await indexer.close()
    before = await indexer.coverage()
    await asyncio.sleep(0.05)
    assert await indexer.coverage() == before
    assert (await indexer.list_collections())[0].num_documents == 10


async def test_serve_may_stop_an_indexer_only_when_what_it_began_has_ended(
    make_indexer: MakeIndexer, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, goes_on = asyncio.Event(), asyncio.Event()
    optimize = lancedb.AsyncTable.optimize

    async def held_up(table: Any, **options: Any) -> Any:
        began.set()
        await goes_on.wait()
        return await optimize(table, **options)

    monkeypatch.setattr(lancedb.AsyncTable, "optimize", held_up)
    indexer = make_indexer(commits_per_optimize=1)
    await indexer.index("docs", documents(10), BUDGET_S)
    await began.wait()
    # It waits for the maintenance, and its client leaves.
    writing = asyncio.ensure_future(indexer.delete_document("docs", "d0003"))
    await asyncio.sleep(0)
    writing.cancel()
    # What Serve awaits before it kills the replica.
    stopping = asyncio.ensure_future(indexer.__del__())
    await asyncio.wait([writing])
    assert not stopping.done()
    goes_on.set()
    await stopping
    assert await coverage_of(indexer) == ALL_COVERED
    assert (await indexer.list_collections())[0].num_documents == 9


async def test_an_indexer_that_could_not_be_made_may_be_stopped() -> None:
    await Indexer.__new__(Indexer).__del__()


async def test_searches_are_right_while_documents_are_written_and_indexes_are_kept(
    make_indexer: MakeIndexer, retriever: RemoteRetriever, real: Backend
) -> None:
    """Every document that was acknowledged is found by its word, whichever index or scan finds it."""
    indexer = make_indexer(commits_per_optimize=2, vector_index_min_rows=10, vector_index_exact_below=30)
    written: set[str] = set()

    async def write() -> None:
        for number in range(12):
            batch = [Document(f"d{number}-{n}", f"common word{number}") for n in range(5)]
            await indexer.index("docs", [*batch, Document("replaced", f"common version{number}")], BUDGET_S)
            written.update(document.id for document in batch)

    writing = asyncio.ensure_future(write())
    await asyncio.sleep(0)
    while not writing.done():
        acknowledged = set(written)
        if acknowledged:
            assert acknowledged <= await found_by_words(retriever, "common")
        await asyncio.sleep(0.005)
    await writing
    assert await found_by_words(retriever, "common") == {*written, "replaced"}
    assert await found_by_words(retriever, "version10") == set()
    assert await found_by_words(retriever, "version11") == {"replaced"}


class TestTheVectorIndex:
    @pytest.fixture(params=[90, 1000], ids=["partitions", "exact"])
    async def indexed(self, make_indexer: MakeIndexer, request: pytest.FixtureRequest) -> Indexer:
        """A hundred documents with a vector index, which covers all but the last ten of them."""
        indexer = make_indexer(vector_index_min_rows=90, vector_index_exact_below=request.param, min_unindexed_rows=90)
        await indexer.index("docs", documents(90), BUDGET_S)

        async def covered() -> bool:
            return await coverage_of(indexer) == {**ALL_COVERED, "vector": 1.0}

        await until(covered)
        await indexer.index("docs", documents(10, 90), BUDGET_S)
        return indexer

    async def search(self, retriever: RemoteRetriever, vector: Vector, k: int, **wanted: Any) -> dict[str, float]:
        request = SearchRequest("docs", k, vector=vector, filter=wanted or None)
        return {p.document_id: p.score for p in (await retriever.search(request, BUDGET_S)).value.passages}

    async def cosines(self, real: Backend, vector: Vector) -> dict[str, float]:
        vectors = await real.embed(*(document.text for document in documents(100)))
        scores = (vectors @ vector).tolist()
        return {document.id: score for document, score in zip(documents(100), scores, strict=True)}

    async def test_below_its_bound_there_is_none(self, make_indexer: MakeIndexer) -> None:
        indexer = make_indexer(vector_index_min_rows=11, commits_per_optimize=1)
        await indexer.index("docs", documents(10), BUDGET_S)

        async def covered() -> bool:
            return await coverage_of(indexer) == ALL_COVERED

        await until(covered)

    async def test_it_is_one_partition_at_first_and_then_as_many_as_the_rows_of_each(
        self, make_indexer: MakeIndexer, tmp_path: Path
    ) -> None:
        bounds = {"vector_index_min_rows": 10, "vector_index_exact_below": 25}
        indexer = make_indexer(**bounds, min_unindexed_rows=1, max_unindexed_share=0.01)
        for start, end, rows_each in ((0, 10, 25), (10, 25, 5), (25, 100, 10)):
            await indexer.index("docs", documents(end - start, start), BUDGET_S)

            async def made(rows_each: int = rows_each) -> bool:
                details = [index.index_details for index in await self.vector_indexes(tmp_path)]
                return [(d["metric_type"], d["target_partition_size"]) for d in details] == [("DOT", rows_each)]

            await until(made)

    async def test_it_is_made_anew_before_it_lies_in_too_many_pieces(
        self, make_indexer: MakeIndexer, tmp_path: Path
    ) -> None:
        bounds = {"vector_index_min_rows": 50, "vector_index_exact_below": 50, "vector_index_max_segments": 1}
        indexer = make_indexer(**bounds, min_unindexed_rows=1, max_unindexed_share=0.01)
        for start in range(0, 100, 50):
            await indexer.index("docs", documents(50, start), BUDGET_S)

            async def whole(num_rows: int = start + 50) -> bool:
                indexes = await self.vector_indexes(tmp_path)
                return [(index.num_segments, index.num_indexed_rows) for index in indexes] == [(1, num_rows)]

            await until(whole)

    async def vector_indexes(self, folder: Path) -> list[Any]:
        return [index for index in await (await open_table(folder)).list_indices() if index.name == "vector"]

    async def test_its_scores_are_cosines_and_the_best_passage_comes_first(
        self, indexed: Indexer, retriever: RemoteRetriever, real: Backend
    ) -> None:
        for number in (0, 42, 89, 90, 99):
            vector = (await real.embed(documents(1, number)[0].text))[0]
            cosines = await self.cosines(real, vector)
            found = await self.search(retriever, vector, 5)
            assert next(iter(found.values())) == pytest.approx(max(cosines.values()), abs=1e-4)
            assert all(score == pytest.approx(cosines[name], abs=1e-4) for name, score in found.items())

    async def test_many_vectors_at_once_find_what_each_finds_alone(
        self, indexed: Indexer, retriever: RemoteRetriever, real: Backend
    ) -> None:
        vectors = await real.embed(*(documents(1, number)[0].text for number in range(0, 100, 9)))
        alone = [await self.search(retriever, vector, 4) for vector in vectors]
        together = await asyncio.gather(*(self.search(retriever, vector, 4) for vector in vectors))
        assert list(together) == alone

    async def test_a_filter_that_few_passages_meet_finds_them_all_wherever_they_lie(
        self, indexed: Indexer, retriever: RemoteRetriever, real: Backend
    ) -> None:
        wanted = [f"d{number:04d}" for number in range(0, 100, 9)]
        vector = (await real.embed("text 1 of number1"))[0]
        found = await self.search(retriever, vector, 100, document_id=wanted)
        cosines = await self.cosines(real, vector)
        assert set(found) == set(wanted)
        assert list(found.values()) == pytest.approx(sorted((cosines[name] for name in wanted), reverse=True), abs=1e-4)

    async def test_k_passages_come_even_where_the_partitions_it_visits_have_fewer(
        self, indexed: Indexer, retriever: RemoteRetriever, real: Backend
    ) -> None:
        vectors = await real.embed("text 1 of number1", "text 50 of number1")
        for found in await asyncio.gather(*(self.search(retriever, vector, 100) for vector in vectors)):
            assert len(found) == 100

    async def test_what_is_deleted_or_replaced_leaves_it(
        self, indexed: Indexer, retriever: RemoteRetriever, real: Backend
    ) -> None:
        await indexed.delete_document("docs", "d0042")
        await indexed.index("docs", [Document("d0043", "something else")], BUDGET_S)
        for number in (42, 43):
            vector = (await real.embed(documents(1, number)[0].text))[0]
            found = await self.search(retriever, vector, 100)
            assert "d0042" not in found
            assert found.get("d0043", 0.0) < 0.999
        vector = (await real.embed("something else"))[0]
        assert (await self.search(retriever, vector, 1))["d0043"] == pytest.approx(1.0, abs=1e-4)


async def test_maintenance_keeps_what_the_table_remembers(
    make_indexer: MakeIndexer, retriever: RemoteRetriever
) -> None:
    indexer = make_indexer(commits_per_optimize=2)
    versions = []
    for number in range(4):
        document = Document(f"d{number}", "text", metadata={f"field{number}": number})
        await indexer.index("docs", [document, Document("replaced", f"text {number}")], BUDGET_S)
        versions.append((await retriever.version("docs", BUDGET_S)).value)

    async def covered() -> bool:
        return await coverage_of(indexer) == ALL_COVERED

    await until(covered)
    versions.append((await retriever.version("docs", BUDGET_S)).value)
    assert versions == sorted(versions)
    assert len(set(versions[:-1])) == 4
    for number in range(4):
        request = SearchRequest("docs", 9, "text", text="text", filter={f"field{number}": number})
        (passage,) = (await retriever.search(request, BUDGET_S)).value.passages
        assert passage.document_id == f"d{number}"
    with pytest.raises(InvalidInput, match="field4"):
        await retriever.search(SearchRequest("docs", 9, "text", text="text", filter={"field4": 4}), BUDGET_S)
    (info,) = await indexer.list_collections()
    assert info.dim > 0
    assert info.embedding_model
