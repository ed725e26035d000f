"""Answers that were given before: the same question, asked the same way, of a collection that has not changed since."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import Field

from deployments.byte_lru import ByteLru
from deployments.errors import InvalidInput
from deployments.section import Section

Answer = TypeVar("Answer")


class AnswerCacheConfig(Section):
    """Whether answers are kept, and how many."""

    enabled: bool = Field(True, description="Give the same answer again while the collection has not changed.")
    max_bytes: int = Field(32 * 2**20, ge=0, description="Answers kept by each ingress replica, in bytes.")


@dataclass(frozen=True, slots=True)
class AnswerCacheStats:
    """Counts since the start, and what is held now.

    A lookup is a `known` that says no or a `get`: `hits` found an answer, `misses` did not. `stale` counts the answers
    that were dropped because their collection had changed, `evictions` those that had to make room.
    """

    hits: int
    misses: int
    stale: int
    evictions: int
    num_bytes: int
    num_entries: int


@dataclass(frozen=True, slots=True)
class _Entry(Generic[Answer]):
    version: int
    answer: Answer


class AnswerCache(Generic[Answer]):
    """One answer per key, good for one version of its collection. Keys match exactly or not at all.

    A lane asks `known` first, which is free, and only where it says yes for the collection's version and then `get`.
    The key must hold everything that the answer depends on, the collection's name included. For one event loop.
    """

    def __init__(self, config: AnswerCacheConfig) -> None:
        self._entries: ByteLru[Hashable, _Entry[Answer]] = ByteLru(config.max_bytes if config.enabled else 0)
        self._hits = 0
        self._misses = 0
        self._stale = 0

    def known(self, key: Hashable) -> bool:
        """Whether there is an answer under the key, whatever version of the collection it is good for."""
        found = self._entries.peek(key) is not None
        self._misses += not found
        return found

    def get(self, key: Hashable, version: int) -> Answer | None:
        """The answer that was given at this very version of the collection, if it is kept. An older one is dropped."""
        entry = self._entries.peek(key)
        if entry is None or entry.version != version:
            self._misses += 1
            if entry is not None and entry.version < version:
                self._stale += 1
                self._entries.drop(key)
            return None
        self._hits += 1
        self._entries.get(key)
        return entry.answer

    def put(self, key: Hashable, version: int, answer: Answer, num_bytes: int) -> None:
        """Keep the answer, which takes `num_bytes`, unless one from a newer version of the collection is kept."""
        entry = self._entries.peek(key)
        if entry is None or entry.version <= version:
            self._entries.put(key, _Entry(version, answer), num_bytes)

    def stats(self) -> AnswerCacheStats:
        """The counters."""
        return AnswerCacheStats(
            self._hits,
            self._misses,
            self._stale,
            self._entries.num_evictions,
            self._entries.num_bytes,
            len(self._entries),
        )


def canonical(value: Any) -> str:
    """A value made of JSON's types as text that is equal exactly where the values are alike, to serve in a key.

    The order of a mapping's keys does not count, that of a list does; 1, 1.0, true and "1" are four values. Raises
    InvalidInput for a value that JSON does not have.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    except RecursionError:
        raise InvalidInput("the value is nested too deeply; flatten it") from None


def _plain(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise InvalidInput(
        f"a {type(value).__name__} is not a value of JSON; use text, numbers, booleans, lists or objects"
    )
