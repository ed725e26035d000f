"""The lane: which stage follows which, under one deadline, with one trace. Knows neither Ray nor HTTP.

parse ─► rewrite ─► embed, search (vector ∥ text) ─► rerank ─► context ─► generate
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from msgspec.structs import asdict

from deployments.citations import CitationFilter, cited_sources
from deployments.context import NOT_FOUND, ContextBuilder
from deployments.contracts import (
    Delta,
    Generated,
    GenerateRequest,
    GenerationOptions,
    Passage,
    Source,
    Stage,
    Usage,
)
from deployments.errors import StageError
from serve_app.answer_cache import AnswerCache, AnswerCacheStats, canonical
from serve_app.lane_config import LaneConfig
from serve_app.retrieval import CLIENTS_FAULT, Query, Retrieval, Stages, Understood
from serve_app.trace import Deadline, Trace
from serve_app.writing import FellBack, Writer, WritingEvent


@dataclass(frozen=True, slots=True)
class Question:
    """A query to be answered, and how. `request_id` names the request in logs and in the generator.

    `stream` says that what was written can't be taken back; `cache` that an answer given before will do.
    """

    query: Query
    options: GenerationOptions = field(default_factory=GenerationOptions)
    request_id: str = ""
    stream: bool = False
    cache: bool = True


@dataclass(frozen=True, slots=True)
class Found:
    """Passages by descending score, the stages that had to be left out, and where the time went."""

    passages: list[Passage]
    degraded: tuple[Stage, ...]
    trace: Trace


@dataclass(frozen=True, slots=True)
class SourcesChosen:
    """First event of an answer: the sources it may cite."""

    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Restarted:
    """What was written so far is void: another generator begins anew. Never in an answer that is streamed."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Last event of an answer: everything but its text, which came as `Delta` events.

    `found` is False where the answer is that the documents hold none; `removed_citations` are numbers that the
    generator cited without having been given such a source.
    """

    citations: tuple[Source, ...]
    removed_citations: tuple[int, ...]
    found: bool
    confidence: float | None
    finish_reason: str
    generator: str
    usage: Usage
    degraded: tuple[Stage, ...]
    cached: bool
    trace: Trace


AnswerEvent = SourcesChosen | Delta | Restarted | Answered


@dataclass(frozen=True, slots=True)
class _Cached:
    """A whole answer, as the cache keeps it."""

    sources: tuple[Source, ...]
    text: str
    end: Answered

    @property
    def num_bytes(self) -> int:
        """An estimate: what takes memory is text, a source's twice where chunks were merged."""
        passages = [source.passage for source in self.sources]
        return len(self.text) + sum(2 * len(passage.text) + len(str(passage.metadata)) for passage in passages)


PromptLimit = Callable[[int | None], int | None]


def _no_limit(max_tokens: int | None) -> int | None:
    return None


class Lane:
    """parse → rewrite → embed → search → rerank → context → generate."""

    def __init__(
        self, config: LaneConfig, context: ContextBuilder, stages: Stages, prompt_limit: PromptLimit = _no_limit
    ) -> None:
        """`prompt_limit` tells from an answer's `max_tokens` how many tokens its prompt may have."""
        self.config = config
        self._prompt_limit = prompt_limit
        self._retrieval = Retrieval(config, stages)
        self._context = context
        self._stages = stages
        self._writer = Writer(stages.generator, stages.fallback, config.fallback_reserve_s, config.first_word_timeout_s)
        self._answers: AnswerCache[_Cached] = AnswerCache(config.answer_cache)

    def answer_cache_stats(self) -> AnswerCacheStats:
        """How often the answer cache was of use."""
        return self._answers.stats()

    async def search(self, query: Query, deadline: Deadline, trace: Trace | None = None) -> Found:
        """The passages that match the query best. Where the time goes is told to `trace`."""
        trace = trace or Trace()
        understood = self._retrieval.understand(query, trace)
        retrieved = await self._retrieval.find(query, understood, deadline, trace)
        trace.left_out(retrieved.left_out)
        return Found(retrieved.passages, trace.degraded, trace)

    async def answer(
        self, question: Question, deadline: Deadline, trace: Trace | None = None
    ) -> AsyncGenerator[AnswerEvent]:
        """The answer as events: `SourcesChosen`, any number of `Delta`, `Answered`. Closing it stops the generator.

        Where the time goes is told to `trace`.
        """
        trace = trace or Trace()
        understood = self._retrieval.understand(question.query, trace)
        key = self._cache_key(question, understood)
        known = await self._known_answer(key, question.query.collection, deadline, trace)
        if known is not None:
            yield SourcesChosen(known.sources)
            yield Delta(known.text)
            yield replace(known.end, cached=True, trace=trace)
            return
        retrieved = await self._retrieval.find(question.query, understood, deadline, trace)
        with trace.local("context"):
            limit = self._prompt_limit(question.options.max_tokens)
            context = self._context.build(understood.text, retrieved.passages, limit)
        request = GenerateRequest(
            question=understood.text,
            sources=context.sources,
            messages=context.messages,
            options=question.options,
            collection=question.query.collection,
            question_vector=retrieved.vector,
            request_id=question.request_id,
        )
        answer = _Answer(context.sources, self._context.check_citations, retrieved.left_out, trace)
        begun = False
        async with aclosing(self._writer.write(request, question.stream, deadline, trace)) as events:
            async for event in events:
                if not (begun or isinstance(event, FellBack)):
                    # A generator that refuses (a prompt too long, say) does so before its first words, and so does the
                    # fallback, while the answer can still be an error.
                    yield SourcesChosen(context.sources)
                    begun = True
                for written in answer.take(event):
                    yield written
        end = answer.end()
        if key is not None and retrieved.version is not None and not end.degraded:
            cached = _Cached(context.sources, answer.text, end)
            self._answers.put(key, retrieved.version, cached, cached.num_bytes)
        yield end

    def _cache_key(self, question: Question, understood: Understood) -> str | None:
        """What the answer depends on besides the collection's version; None for an answer that is not to be kept."""
        options = question.options
        varies = self._stages.samples if options.temperature is None else options.temperature > 0
        sampled = varies and options.seed is None
        if not (self.config.answer_cache.enabled and question.cache) or sampled:
            return None
        query = question.query
        # Nobody but a language model reads the conversation.
        history = query.history if self._stages.rewriter is not None else ()
        asked = canonical(
            [
                [query.collection, understood.texts, understood.filter, query.k, query.mode, query.rerank],
                [query.rewrite, history, asdict(options)],
            ]
        )
        return blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    async def _known_answer(self, key: str | None, collection: str, deadline: Deadline, trace: Trace) -> _Cached | None:
        """The answer given before, if the collection has not changed since."""
        if key is None or not self._answers.known(key):
            return None
        try:
            # Nobody has to know: a retriever that never answers must leave the lane its time.
            budget_s = deadline.remaining_s() * self.config.stage_deadline_share
            asked = self._stages.retriever.version(collection, budget_s)
            version = await trace.timed("search", asked, "version")
        except CLIENTS_FAULT:
            raise
        except StageError:
            return None
        return self._answers.get(key, version)


class _Answer:
    """An answer while it is being written: its text, its citations, and what became of it."""

    def __init__(
        self, sources: tuple[Source, ...], check_citations: bool, left_out: Mapping[Stage, str], trace: Trace
    ) -> None:
        self._sources = sources
        self._trace = trace
        self._times_s: list[float] = []
        self._check_citations = check_citations
        self._citations = self._citation_filter()
        self._left_out = dict(left_out)
        self._pieces: list[str] = []
        self._generated: Generated | None = None

    def _citation_filter(self) -> CitationFilter:
        return CitationFilter(len(self._sources), self._check_citations)

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def take(self, event: WritingEvent) -> list[Delta | Restarted]:
        """What the client is to hear of an event of the generator."""
        if isinstance(event, FellBack):
            self._left_out["generate"] = event.reason
            self._citations = self._citation_filter()
            void = bool(self._pieces)
            self._pieces.clear()
            self._times_s.clear()
            return [Restarted()] if void else []
        if isinstance(event, Generated):
            self._generated = event
            text = self._citations.flush()
        else:
            text = self._citations.feed(event.text)
            self._times_s.append(self._trace.elapsed_s())
        if not text:
            return []
        self._pieces.append(text)
        return [Delta(text)]

    def end(self) -> Answered:
        """The last event, once the generator has ended."""
        generated = self._generated
        assert generated is not None, "a writer ends with Generated"
        self._trace.left_out(self._left_out)
        self._trace.tally.written(generated.generator, self._times_s, generated.usage)
        return Answered(
            citations=cited_sources(self._citations.cited, self._sources),
            removed_citations=self._citations.removed,
            found=self.text.strip() != NOT_FOUND,
            confidence=generated.confidence,
            finish_reason=generated.finish_reason,
            generator=generated.generator,
            usage=generated.usage,
            degraded=self._trace.degraded,
            cached=False,
            trace=self._trace,
        )
