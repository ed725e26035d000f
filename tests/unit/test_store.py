"""Names and literals of the store, and what a table remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import IndexMismatch, InvalidInput, NotFound
from deployments.store import (
    StoreConfig,
    Tables,
    add_missing_columns,
    check_collection_name,
    check_indexed_with,
    collection_version,
    indexed_with,
    known_fields,
    record_fields,
    sql_literal,
    table_schema,
    where_ids,
)


@pytest.mark.parametrize("name", ["a", "docs", "Docs-2_b", "0", "x" * 63])
def test_a_plain_name_is_taken(name: str) -> None:
    assert check_collection_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "_a", ".", "..", "a/b", "a\\b", "a.b", "a b", "a\n", "ä", "x" * 64, "a'b"])
def test_a_name_that_could_mean_a_path_or_nothing_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_collection_name(name)


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        ("", "''"),
        ("it's", "'it''s'"),
        ("'; DROP TABLE x; --", "'''; DROP TABLE x; --'"),
        ("größe 😀", "'größe 😀'"),
        (7, "7"),
        (-1.5e-7, "-1.5e-07"),
        (True, "true"),
        (False, "false"),
    ],
)
def test_scalars_become_sql_literals(value: Any, literal: str) -> None:
    assert sql_literal(value) == literal


@pytest.mark.parametrize(
    "value", [None, [1], {"a": 1}, b"x", float("nan"), float("inf"), -float("inf"), 10**400, "a\ud800"]
)
def test_what_sql_can_not_say_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput):
        sql_literal(value)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_text_never_ends_its_own_literal(value: str) -> None:
    literal = sql_literal(value)
    inside = literal[1:-1].replace("''", "")
    assert literal[0] == literal[-1] == "'"
    assert "'" not in inside
    assert literal[1:-1].replace("''", "'") == value


def test_ids_are_quoted_one_by_one() -> None:
    assert where_ids("id", ["a:0", "it's:1"]) == "id IN ('a:0', 'it''s:1')"


def test_a_table_remembers_the_model_of_its_vectors() -> None:
    schema = table_schema(3, "model-a")
    assert indexed_with(schema) == ("model-a", 3)
    check_indexed_with("docs", schema, "model-a", 3)
    check_indexed_with("docs", schema, "", 3)
    with pytest.raises(IndexMismatch, match="model-b"):
        check_indexed_with("docs", schema, "model-b", 3)
    with pytest.raises(IndexMismatch, match="4 dimensions"):
        check_indexed_with("docs", schema, "", 4)


def test_a_later_table_has_greater_versions_than_any_of_an_earlier_one() -> None:
    before, after = table_schema(3, "model", created_ms=1_700_000_000_000), table_schema(3, "model", 1_700_000_000_001)
    assert collection_version(before, 1) < collection_version(before, 2) < collection_version(before, 1_000_000)
    assert collection_version(before, 1_000_000) < collection_version(after, 1) < 2**63


def test_a_table_without_a_record_of_its_age_has_versions_all_the_same() -> None:
    assert collection_version(table_schema(3, "model"), 1) < collection_version(table_schema(3, "model"), 2)


async def test_a_table_remembers_its_fields_and_commits_only_new_ones(tmp_path: Path) -> None:
    connection = await Tables(StoreConfig(uri=str(tmp_path))).connection()
    table = await connection.create_table("docs", schema=table_schema(3, "model", created_ms=1))
    assert known_fields(await table.schema()) == frozenset()
    for fields, commits in (({"year"}, 1), ({"year"}, 0), (set(), 0), ({"größe", "a.b-c", "year"}, 1)):
        before = await table.version()
        await record_fields(table, frozenset(fields))
        assert await table.version() - before == commits
    assert known_fields(await table.schema()) == frozenset({"year", "größe", "a.b-c"})
    assert indexed_with(await table.schema()) == ("model", 3)


async def test_a_table_that_never_recorded_its_fields_does_not_begin_with_it(tmp_path: Path) -> None:
    connection = await Tables(StoreConfig(uri=str(tmp_path))).connection()
    table = await connection.create_table("docs", schema=table_schema(3, "model"))
    await record_fields(table, frozenset({"year"}))
    assert known_fields(await table.schema()) is None


async def test_a_table_of_an_earlier_version_gets_its_missing_columns_once(tmp_path: Path) -> None:
    connection = await Tables(StoreConfig(uri=str(tmp_path))).connection()
    rows = [{"id": "a:0", "title": "Bees", "text": "They make honey."}, {"id": "b:0", "title": "", "text": "It's."}]
    table = await connection.create_table("docs", rows)
    await add_missing_columns(table)
    version = await table.version()
    await add_missing_columns(table)
    assert await table.version() == version
    for row in (await table.query().to_arrow()).to_pylist():
        assert row["search_text"] == f"{row['title']}\n{row['text']}"
        assert row["title_vector"] is None


def test_home_is_expanded_and_object_stores_are_left_alone() -> None:
    assert StoreConfig(uri="~/data").location() == str(Path.home() / "data")
    assert StoreConfig(uri="s3://bucket/data").location() == "s3://bucket/data"


async def test_a_missing_table_is_not_found_and_a_bad_name_never_reaches_the_store(tmp_path: Path) -> None:
    tables = Tables(StoreConfig(uri=str(tmp_path / "store")))
    with pytest.raises(NotFound, match="nowhere"):
        await tables.table("nowhere")
    with pytest.raises(InvalidInput):
        await tables.table("../nowhere")


async def test_an_action_that_fails_on_a_table_that_is_gone_is_tried_on_the_one_made_since(tmp_path: Path) -> None:
    tables = Tables(StoreConfig(uri=str(tmp_path)))
    connection = await tables.connection()
    await connection.create_table("docs", schema=table_schema(3, "old"))

    async def model(table: Any) -> str:
        return indexed_with(await table.schema())[0]

    assert await tables.use("docs", model) == "old"
    await connection.drop_table("docs")
    with pytest.raises(NotFound):
        await tables.use("docs", model)
    await connection.create_table("docs", schema=table_schema(3, "new"))
    assert await tables.use("docs", model) == "new"


async def test_an_action_that_fails_on_a_sound_table_fails(tmp_path: Path) -> None:
    tables = Tables(StoreConfig(uri=str(tmp_path)))
    await (await tables.connection()).create_table("docs", schema=table_schema(3, "model"))

    async def fail(table: Any) -> None:
        raise ValueError("no good")

    for _ in range(2):
        with pytest.raises(ValueError, match="no good"):
            await tables.use("docs", fail)
