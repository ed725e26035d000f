"""What a PromQL query names: enough of its grammar to find metrics and labels, none of its meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Use:
    """A metric in a query, with the labels that its matchers and the aggregations around it name."""

    metric: str
    labels: frozenset[str]


_TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>"(?:\\.|[^"\\])*")
  | (?P<range>\[[^\]]*\])
  | (?P<number>\d[\w.]*)
  | (?P<word>[A-Za-z_:][\w:]*)
  | (?P<sign>[=!<>]=|=~|!~|[-+*/%^=<>,(){}])
    )\s*""",
    re.VERBOSE,
)
_OPERATORS = {"and", "or", "unless", "offset", "bool"}
_MATCHING = {"on", "ignoring", "group_left", "group_right"}


def _tokens(query: str) -> list[str]:
    tokens, position = [], 0
    while position < len(query):
        found = _TOKEN.match(query, position)
        if found is None:
            raise ValueError(f"not PromQL: {query[position:]!r}")
        tokens.append(found[0].strip())
        position = found.end()
    return tokens


def _is_word(token: str) -> bool:
    return re.fullmatch(r"[A-Za-z_:][\w:]*", token) is not None


def uses(query: str) -> list[Use]:
    """The metrics of a query, in order. Aggregations are written `sum by (labels) (...)`, never the other way round.

    Raises ValueError for what it can't read.
    """
    tokens = [*_tokens(query), ""]
    found: list[Use] = []
    around: list[frozenset[str]] = []
    grouping: frozenset[str] = frozenset()
    position = 0
    while tokens[position]:
        token, following = tokens[position], tokens[position + 1]
        position += 1
        if token == "(":
            around.append(grouping)
            grouping = frozenset()
        elif token == ")":
            around.pop()
            if following in ("by", "without"):
                raise ValueError(f"labels behind an aggregation: {query}")
        elif token == "by" or token in _MATCHING:
            if following == "(":
                end = tokens.index(")", position)
                if token == "by":
                    grouping = frozenset(filter(_is_word, tokens[position:end]))
                position = end + 1
        elif _is_word(token) and token not in _OPERATORS and following not in ("(", "by"):
            labels = frozenset[str]()
            if following == "{":
                end = tokens.index("}", position)
                labels = frozenset(filter(_is_word, tokens[position:end]))
                position = end + 1
            found.append(Use(token, labels.union(*around)))
    return found


def matched_labels(query: str) -> set[str]:
    """The labels on which a query joins its sides: `on (...)`, `ignoring (...)`, `group_left (...)`."""
    lists: list[str] = re.findall(rf"\b(?:{'|'.join(_MATCHING)}) *\(([^)]*)\)", query)
    return {label.strip() for labels in lists for label in labels.split(",") if label.strip()}
