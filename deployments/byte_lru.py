"""A least-recently-used map that is bounded by memory, not by the number of its entries."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

# What an entry takes beside the bytes it is put with: its place in the map (about 150 bytes on 64-bit CPython 3.11),
# a small key, and the object around the value's data.
ENTRY_BYTES = 256


class ByteLru(Generic[Key, Value]):
    """Keeps the most recently used entries, as many as `max_bytes` hold; each counts `ENTRY_BYTES` more than its size.

    A value that is too large for the bound is not kept, so a bound of 0 keeps nothing. For one thread or event loop.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._num_evictions = 0
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """The value, which this makes the most recently used one; None where there is none."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def peek(self, key: Key) -> Value | None:
        """The value without counting as a use of it; None where there is none."""
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: Key, value: Value, num_bytes: int) -> None:
        """Keep the value, which takes `num_bytes`, in place of what the key had; the least recently used make room."""
        self.drop(key)
        size = num_bytes + ENTRY_BYTES
        if size > self._max_bytes:
            return
        self._entries[key] = (value, size)
        self._num_bytes += size
        while self._num_bytes > self._max_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self._num_bytes -= freed
            self._num_evictions += 1

    def drop(self, key: Key) -> None:
        """Forget the key, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._num_bytes -= entry[1]

    def clear(self) -> None:
        """Forget everything; what is forgotten so is not counted as evicted."""
        self._entries.clear()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """What the entries take, `ENTRY_BYTES` of each included; never more than the bound."""
        return self._num_bytes

    @property
    def num_evictions(self) -> int:
        """Entries that had to make room since the start."""
        return self._num_evictions

    def __len__(self) -> int:
        return len(self._entries)
