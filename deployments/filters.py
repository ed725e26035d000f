"""The filter of a SearchRequest: its grammar, and the SQL that it becomes."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deployments.errors import InvalidInput
from deployments.store import sql_literal

COLUMNS = frozenset({"id", "document_id", "source", "title"})

_METADATA_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_OPERATORS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "ne": "!="}
_COMPARISONS = (*_OPERATORS, "contains")
_FIELDS_SHOWN = 10


def where_clause(filter_: Mapping[str, Any] | None) -> str | None:
    """The filter as SQL; None when it filters nothing. Every condition must hold.

    Raises InvalidInput that names the field it can't use.
    """
    conditions = [condition for field, wanted in (filter_ or {}).items() for condition in _conditions(field, wanted)]
    return " AND ".join(conditions) or None


def filterable(keys: Iterable[str]) -> frozenset[str]:
    """Those of the metadata keys that a filter can name."""
    return frozenset(key for key in keys if _METADATA_KEY.fullmatch(key))


def unknown_field(filter_: Mapping[str, Any] | None, known: frozenset[str]) -> str | None:
    """The first field of the filter that is neither a column nor one of the `known` metadata keys."""
    for field in filter_ or {}:
        if field not in COLUMNS and _key(field) not in known:
            return field
    return None


def no_such_field(field: str, known: frozenset[str], collection: str) -> InvalidInput:
    """The refusal of a field that no document has, with those that it may have meant, the nearest first."""
    near = difflib.get_close_matches(_key(field), sorted(COLUMNS | known), n=_FIELDS_SHOWN, cutoff=0.0)
    return InvalidInput(
        f"filter field {field!r}: no document of collection {collection!r} has it; known fields: {', '.join(near)}"
    )


def _key(field: str) -> str:
    return field.removeprefix("metadata.")


def _conditions(field: str, wanted: Any) -> list[str]:
    if isinstance(wanted, Mapping):
        unknown = set(wanted) - set(_COMPARISONS)
        if unknown or not wanted:
            raise InvalidInput(
                f"filter field {field!r}: unknown comparison {sorted(map(str, unknown))}; use {', '.join(_COMPARISONS)}"
            )
        return [
            _contains(field, value) if name == "contains" else _compares(field, _OPERATORS[name], value)
            for name, value in wanted.items()
        ]
    if isinstance(wanted, list | tuple):
        if not wanted:
            raise InvalidInput(f"filter field {field!r}: the list of values is empty")
        return [_is_one_of(field, wanted)]
    return [_compares(field, "=", wanted)]


def _is_one_of(field: str, values: Sequence[Any]) -> str:
    """Equality with any of the values as SQL. It stays flat: LanceDB refuses expressions that are 500 deep."""
    literals = [_literal(field, value) for value in values]
    if field in COLUMNS:
        return f"{field} IN ({', '.join(literals)})"
    as_json = _as_json(field)
    texts = [_json_literal(value) for value in values if isinstance(value, str | bool)]
    conditions = [f"{as_json} IN ({', '.join(texts)})"] if texts else []
    for is_long in (False, True):
        numbers = [
            literal
            for value, literal in zip(values, literals, strict=True)
            if not isinstance(value, str | bool) and _is_long(value) == is_long
        ]
        if numbers:
            conditions.append(_number(as_json, f"IN ({', '.join(numbers)})", is_long))
    return f"({' OR '.join(conditions)})"


def _compares(field: str, operator: str, value: Any) -> str:
    """One comparison as SQL. A field that is missing, or holds another kind of value, satisfies no comparison."""
    literal = _literal(field, value)
    if field in COLUMNS:
        return f"{field} {operator} {literal}"
    as_json = _as_json(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(as_json, f"{operator} {literal}", _is_long(value))
    if operator == "=":
        return f"{as_json} = {_json_literal(value)}"
    if isinstance(value, bool):
        return f"({as_json} IN ('true', 'false') AND {as_json} {operator} {_json_literal(value)})"
    return f"({as_json} LIKE '\"%' AND {_as_text(field)} {operator} {literal})"


def _is_long(value: float) -> bool:
    """Whether it is a whole number of 64 bits, with or without a sign, that as a float could be one of several."""
    return isinstance(value, int) and abs(value) >= 2**53 and -(2**63) <= value < 2**64


def _number(as_json: str, comparison: str, is_long: bool) -> str:
    """A comparison of a number as SQL; with `is_long`, whole numbers are compared to the last digit."""
    as_double = f"TRY_CAST({as_json} AS DOUBLE) {comparison}"
    if not is_long:
        return as_double
    # The one decimal keeps floats just below 2^53 from being rounded up to it; larger floats are no decimals.
    return f"COALESCE(TRY_CAST({as_json} AS DECIMAL(38, 1)) {comparison}, {as_double})"


def _contains(field: str, value: Any) -> str:
    """Text that holds `value` somewhere, in upper or lower case. Nothing in `value` is a wildcard."""
    if not isinstance(value, str):
        raise InvalidInput(f"filter field {field!r}: contains looks for text; give it a string")
    needle = f"lower({_literal(field, value)})"
    if field in COLUMNS:
        return f"contains(lower({field}), {needle})"
    return f"({_as_json(field)} LIKE '\"%' AND contains(lower({_as_text(field)}), {needle}))"


def _literal(field: str, value: Any) -> str:
    if field in COLUMNS and not isinstance(value, str):
        raise InvalidInput(f"filter field {field!r} holds text; compare it with a string")
    try:
        return sql_literal(value)
    except InvalidInput as error:
        raise InvalidInput(f"filter field {field!r}: {error.message}") from None


def _json_literal(value: str | bool) -> str:
    """The JSON text of a value as a SQL literal."""
    return sql_literal(json.dumps(value, ensure_ascii=False))


def _as_json(field: str) -> str:
    """The JSON text of a metadata value: "7" in quotes for a string, 7 for a number.

    The typed json_get_ functions fail the whole query at the first row whose value is of another kind; this never does.
    """
    key = _key(field)
    if not _METADATA_KEY.fullmatch(key):
        raise InvalidInput(f"filter field {field!r} is not a field name; use letters, digits, '_', '-' and '.'")
    path = f'$."{key}"'
    return f"json_extract(metadata, {sql_literal(path)})"


def _as_text(field: str) -> str:
    """A metadata value that is known to be a string."""
    return f"json_get_string(metadata, {sql_literal(_key(field))})"
