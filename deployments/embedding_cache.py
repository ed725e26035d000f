"""Vectors of questions that were asked before, and one computation for a question that many ask at the same time."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from msgspec.structs import replace
from pydantic import Field

from deployments.byte_lru import ByteLru
from deployments.contracts import Embeddings, EmbedRequest, Embeds, StageTiming, Timed, Vector
from deployments.errors import DeadlineExceeded, EngineFailed, InvalidInput, StageError, StageUnavailable
from deployments.section import Section

NOTHING_COMPUTED = StageTiming(batch_size=0)


class EmbeddingCacheConfig(Section):
    """How much memory the vectors of questions may take."""

    max_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Vectors of questions kept by each ingress replica, in bytes; 0 switches the cache off.",
    )


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts of texts since the start, and what is held now. A text that a request has twice counts once.

    `hits` were in the cache, `joined` were just being computed for another request, `misses` went to the embedder.
    """

    hits: int
    misses: int
    joined: int
    evictions: int
    num_bytes: int
    num_entries: int


class _Key(NamedTuple):
    model: str
    role: Literal["query", "passage"]
    truncate: bool
    text: str


@dataclass(frozen=True, slots=True)
class _Embedded:
    """`vector` is (dim,) float32, read-only, and owns its memory."""

    vector: Vector
    num_tokens: int


# What became of each text of a computation.
_Outcomes = Mapping[str, _Embedded | StageError]


@dataclass(slots=True, eq=False)
class _Flight:
    """One computation, for every request that waits for any of its texts, and the deadline of each of them."""

    keys: tuple[_Key, ...]
    request: EmbedRequest
    deadlines: dict[object, float] = field(default_factory=dict)
    task: asyncio.Task[Timed[_Outcomes]] = field(init=False)


class CachedEmbedder:
    """An embedder in front of another one that answers interactive queries from memory where it can.

    Passages and bulk requests pass through untouched: there are many of them, and few come twice. Of a query's texts
    only those go to the embedder, in one call, that are neither cached nor being computed for another request.

    A computation belongs to nobody: it goes on while anybody waits for it, and is cancelled when nobody does. It is
    called with the longest deadline of those who wait at its start, so that the embedder can drop what comes too
    late; if it runs out of time while one who came later has some left, it is called again with what that one has.
    An error reaches all who wait, except one that is a single text's own; none is kept.

    Tokens are exact where a request's texts, no two alike, were embedded in one call of their own or each alone. Else
    they are an estimate: an embedder counts a call's tokens together; they are shared out by the texts' lengths.
    """

    def __init__(self, inner: Embeds, model: str | Callable[[], str], config: EmbeddingCacheConfig) -> None:
        """`model` is the name of the model that `inner` runs, or tells it at each request; it is part of every key."""
        self._inner = inner
        self._model = model
        self._enabled = config.max_bytes > 0
        self._cache: ByteLru[_Key, _Embedded] = ByteLru(config.max_bytes)
        self._in_flight: dict[_Key, _Flight] = {}
        self._tasks: set[asyncio.Task[Timed[_Outcomes]]] = set()
        self._hits = 0
        self._misses = 0
        self._joined = 0

    async def embed(self, request: EmbedRequest, budget_s: float) -> Timed[Embeddings]:
        """Vectors in the order of the texts, as the inner embedder would give them; the caller may write to them.

        The timing is that of the computation, as far as this request waited for it; with every text cached its
        `compute_s` and `batch_size` are 0. Raises DeadlineExceeded after `budget_s` seconds, and the inner embedder's
        errors.
        """
        if not (self._enabled and request.texts and request.role == "query" and request.priority == "interactive"):
            return await self._inner.embed(request, budget_s)
        if budget_s <= 0:
            raise DeadlineExceeded("no time was left to embed the query; raise timeout_s")
        embedded, missing = self._look_up(request)
        timing = NOTHING_COMPUTED
        if missing:
            computed = await self._compute(request, missing, budget_s)
            embedded.update(computed.value)
            timing = computed.timing
        vectors = np.stack([embedded[text].vector for text in request.texts])
        return Timed(Embeddings(vectors, sum(embedded[text].num_tokens for text in request.texts)), timing)

    def stats(self) -> CacheStats:
        """The counters."""
        cache = self._cache
        return CacheStats(
            self._hits, self._misses, self._joined, cache.num_evictions, cache.num_bytes, num_entries=len(cache)
        )

    def _look_up(self, request: EmbedRequest) -> tuple[dict[str, _Embedded], list[_Key]]:
        """What is cached, by text, and the keys of what is not."""
        model = self._model if isinstance(self._model, str) else self._model()
        found: dict[str, _Embedded] = {}
        missing: list[_Key] = []
        for text in dict.fromkeys(request.texts):
            key = _Key(model, request.role, request.truncate, text)
            cached = self._cache.get(key)
            if cached is None:
                missing.append(key)
            else:
                found[text] = cached
        self._hits += len(found)
        return found, missing

    async def _compute(
        self, request: EmbedRequest, keys: Sequence[_Key], budget_s: float
    ) -> Timed[dict[str, _Embedded]]:
        """Wait until the texts are computed, in this request's name or in another's; what they became, by text."""
        started = time.monotonic()
        flights = self._flights(request, keys)
        waiter = object()
        for flight in flights:
            flight.deadlines[waiter] = started + budget_s
        try:
            tasks = [flight.task for flight in flights]
            await asyncio.wait(tasks, timeout=budget_s, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for flight in flights:
                self._leave(flight, waiter)
        # Why a text failed says more than that time ran out for the others.
        landed = [flight for flight in flights if flight.task.done()]
        embedded = {key.text: _raise_or_return(flight.task, key.text) for flight in landed for key in flights[flight]}
        if len(landed) < len(flights):
            raise DeadlineExceeded("the embed stage did not answer in time")
        timing = _slowest([flight.task.result().timing for flight in landed])
        return Timed(embedded, _within(time.monotonic() - started, timing))

    def _flights(self, request: EmbedRequest, keys: Sequence[_Key]) -> dict[_Flight, list[_Key]]:
        """The flights that the texts are on, and which of them are on each; those that are on none take off now."""
        flights: dict[_Flight, list[_Key]] = {}
        waiting: list[_Key] = []
        for key in keys:
            flight = self._in_flight.get(key)
            if flight is None:
                waiting.append(key)
            else:
                flights.setdefault(flight, []).append(key)
        self._joined += len(keys) - len(waiting)
        self._misses += len(waiting)
        if waiting:
            flights[self._take_off(_Flight(tuple(waiting), request))] = waiting
        return flights

    def _take_off(self, flight: _Flight) -> _Flight:
        for key in flight.keys:
            self._in_flight[key] = flight
        # A context of its own: a computation that many share must not be one caller's child. Serve finds a request's
        # calls by its context and cancels them when its client leaves.
        loop = asyncio.get_running_loop()
        flight.task = loop.create_task(self._fly(flight), context=contextvars.Context())
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._ended)
        return flight

    async def _fly(self, flight: _Flight) -> Timed[_Outcomes]:
        try:
            computed = await self._outcomes(flight)
        finally:
            self._forget(flight)
        for key in flight.keys:
            outcome = computed.value[key.text]
            if isinstance(outcome, _Embedded):
                num_bytes = sys.getsizeof(key.text) + sys.getsizeof(outcome.vector)
                self._cache.put(key, outcome, num_bytes)
        return computed

    async def _outcomes(self, flight: _Flight) -> Timed[_Outcomes]:
        texts = tuple(key.text for key in flight.keys)
        try:
            return await self._call(flight, texts)
        except (InvalidInput, EngineFailed):
            if len(texts) == 1 or len(flight.deadlines) <= 1:
                raise
        # A single text's fault, and others wait for other texts: each is tried alone.
        parts = await asyncio.gather(*(self._alone(flight, text) for text in texts))
        outcomes = {text: outcome for part in parts for text, outcome in part.value.items()}
        return Timed(outcomes, _slowest([part.timing for part in parts]))

    async def _alone(self, flight: _Flight, text: str) -> Timed[_Outcomes]:
        try:
            return await self._call(flight, (text,))
        except StageError as error:
            return Timed({text: error}, NOTHING_COMPUTED)

    async def _call(self, flight: _Flight, texts: tuple[str, ...]) -> Timed[_Outcomes]:
        """Ask the embedder, and again while one of those who wait has more time than the last call had."""
        request = replace(flight.request, texts=texts)
        while True:
            deadline = max(flight.deadlines.values())
            try:
                embedded = await self._inner.embed(request, deadline - time.monotonic())
            except DeadlineExceeded:
                if max(flight.deadlines.values(), default=deadline) <= deadline:
                    raise
            else:
                return Timed(_by_text(texts, embedded.value), embedded.timing)

    def _leave(self, flight: _Flight, waiter: object) -> None:
        del flight.deadlines[waiter]
        if not flight.deadlines:
            self._forget(flight)
            flight.task.cancel()

    def _forget(self, flight: _Flight) -> None:
        """Let nobody join the flight from now on."""
        for key in flight.keys:
            if self._in_flight.get(key) is flight:
                del self._in_flight[key]

    def _ended(self, task: asyncio.Task[Timed[_Outcomes]]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Looked at, or asyncio would log an error that nobody was left to receive.
            task.exception()


def _raise_or_return(task: asyncio.Task[Timed[_Outcomes]], text: str) -> _Embedded:
    """What the ended task made of the text; its error, or that of the whole task, is raised."""
    if task.cancelled():
        raise StageUnavailable("the embed stage dropped this call")
    outcome = task.exception() or task.result().value[text]
    if isinstance(outcome, _Embedded):
        return outcome
    if isinstance(outcome, StageError):
        # One object raised in several tasks would gather the tracebacks of all of them.
        raise type(outcome)(*outcome.args)
    raise outcome


def _by_text(texts: Sequence[str], embeddings: Embeddings) -> dict[str, _Embedded | StageError]:
    # One more than its characters for each text: an empty one has tokens, too.
    lengths = np.cumsum([len(text) + 1 for text in texts])
    counts = np.diff(np.rint(embeddings.num_tokens * lengths / lengths[-1]).astype(int), prepend=0).tolist()
    return {
        text: _Embedded(_read_only(vector), num_tokens)
        for text, vector, num_tokens in zip(texts, embeddings.vectors, counts, strict=True)
    }


def _read_only(vector: Vector) -> Vector:
    # A copy: a view would keep the memory of the whole call alive.
    copy = np.array(vector, np.float32)
    copy.setflags(write=False)
    return copy


def _slowest(timings: Sequence[StageTiming]) -> StageTiming:
    longest = max(timings, key=lambda timing: timing.batch_wait_s + timing.compute_s)
    return replace(longest, batch_size=max(timing.batch_size for timing in timings))


def _within(waited_s: float, timing: StageTiming) -> StageTiming:
    """What one who waited `waited_s` saw of it: who joined late must not report more time than passed."""
    compute_s = min(timing.compute_s, waited_s)
    return replace(timing, compute_s=compute_s, batch_wait_s=min(timing.batch_wait_s, waited_s - compute_s))
