"""Names, literals and filters of the store. What a filter means to the table is in the search contract."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import IndexMismatch, InvalidInput, NotFound
from deployments.store import (
    StoreConfig,
    Tables,
    check_collection_name,
    check_indexed_with,
    indexed_with,
    sql_literal,
    table_schema,
    where_clause,
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


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_filter_without_conditions_filters_nothing(nothing: Any) -> None:
    assert where_clause(nothing) is None


def test_every_condition_of_a_filter_must_hold() -> None:
    clause = where_clause({"source": "a.txt", "title": {"gte": "A", "lt": "B"}, "document_id": ["x", "y"]})
    assert clause == "source = 'a.txt' AND title >= 'A' AND title < 'B' AND (document_id = 'x' OR document_id = 'y')"


@given(st.text("aZ_9.-'\\\" )(;=é\n", min_size=1), st.sampled_from([1, "x", True]))
def test_a_field_name_that_gets_into_sql_is_made_of_harmless_characters(field: str, value: Any) -> None:
    with suppress(InvalidInput):
        assert where_clause({field: value})
        assert set(field) <= set("aZ_9.-")


def test_a_table_remembers_the_model_of_its_vectors() -> None:
    schema = table_schema(3, "model-a")
    assert indexed_with(schema) == ("model-a", 3)
    check_indexed_with("docs", schema, "model-a", 3)
    check_indexed_with("docs", schema, "", 3)
    with pytest.raises(IndexMismatch, match="model-b"):
        check_indexed_with("docs", schema, "model-b", 3)
    with pytest.raises(IndexMismatch, match="4 dimensions"):
        check_indexed_with("docs", schema, "", 4)


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
