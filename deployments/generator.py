"""The generate stage: its config, the deployment, and the extractive answerer that needs no model."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace
from pydantic import Field

from deployments.citations import defuse_citations
from deployments.context import NOT_FOUND
from deployments.contracts import (
    Call,
    Candidate,
    Delta,
    Embeds,
    Generated,
    GenerateRequest,
    Generates,
    GenerationEvent,
    Outcome,
    Passage,
    Source,
    StageTiming,
    Timed,
    Usage,
)
from deployments.errors import DeadlineExceeded
from deployments.evidence import EvidenceConfig, Scored, SentenceEvidence
from deployments.exporter import ENABLED, TelemetryConfig, export
from deployments.hop import serve_each
from deployments.lexical import count_words
from deployments.replica import settle
from deployments.section import Section, load_engine
from deployments.store import StoreConfig
from deployments.tally import BusyClock
from deployments.vllm_generator import VllmConfig

logger = logging.getLogger(__name__)

# The deployment of the answering engine that stands in for a language model.
FALLBACK = "FallbackGenerator"

# What Markdown puts in front of a list item or a quotation; before a number, some of it means more or less.
_MARKER = re.compile(r"(?:[*•]|[-+>](?!\s+\d)|\d+[.)])\s+")
_FENCES = ("```", "~~~")
_STOPS = ".!。．！।۔"
_REFERS_BACK = re.compile(r"(it|its|they|their|them|this|these|that|those|he|his|she|her|such|both)\b", re.IGNORECASE)


class ExtractiveConfig(Section):
    """How an answer is put together from sentences of the sources."""

    max_sentences: int = Field(3, ge=1, description="Sentences of one answer.")
    min_score: float = Field(
        0.3, ge=0, le=1, description="Where no sentence scores as much, the documents hold no answer."
    )
    max_drop: float = Field(
        0.15, ge=0, description="A further sentence may score at most this much below the best one."
    )
    evidence: EvidenceConfig = Field(
        default_factory=lambda: EvidenceConfig(cache_bytes=64 * 2**20),
        description="How sentences are compared with the question.",
    )


class GeneratorConfig(Section):
    """Who writes the answers: a language model where `vllm` is set, else the engine."""

    engine: str = Field(
        "deployments.generator:ExtractiveAnswerer",
        description="Import path module:Class of the answering engine. Where vllm is set, it is the fallback's.",
    )
    extractive: ExtractiveConfig = Field(default_factory=ExtractiveConfig, description="The extractive answerer.")
    vllm: VllmConfig | None = Field(None, description="The language model that vLLM serves; null: no language model.")
    coalesce: bool | None = Field(
        None,
        description="true: the questions that wait for the engine travel in one call and its answers come back "
        "together, for engines that answer within milliseconds. false: a stream for each answer. null: true for the "
        "extractive answerer, false for other engines.",
    )
    fallback: bool = Field(
        True, description="Beside a language model, keep the engine above at hand for answers that the model fails at."
    )


class GeneratorSettings(Section):
    """What an answering engine is built from."""

    generator: GeneratorConfig
    store: StoreConfig


@dataclass(frozen=True, slots=True)
class Quote:
    """A sentence of a source: where it starts in its document, and how well it answers the question, up to 1."""

    text: str
    number: int
    start: int
    score: float


def choose_quotes(best_first: Sequence[Quote], config: ExtractiveConfig) -> list[Quote]:
    """The sentences that answer the question best; none when no sentence comes close enough.

    The source of the best sentence comes first, and the sentences of one source stand in the order of its text: "They
    are caused by" makes no sense before what it speaks of. A sentence that stands in two sources is quoted once.
    """
    chosen: dict[str, Quote] = {}
    for quote in best_first:
        too_far = quote.score < max(config.min_score, best_first[0].score - config.max_drop)
        if too_far or len(chosen) == config.max_sentences:
            break
        chosen.setdefault(quote.text.casefold(), quote)
    rank = {quote.number: place for place, quote in reversed(list(enumerate(chosen.values())))}
    return sorted(chosen.values(), key=lambda quote: (rank[quote.number], quote.start))


def candidate_quotes(sources: Sequence[Source], scored: Sequence[Scored]) -> list[Quote]:
    """Every sentence that states something, the best first; `scored` holds the sentences of each stored passage."""
    stored = [(source.number, passage) for source in sources for passage in source.stored()]
    quotes = [
        quote
        for (number, passage), sentences in zip(stored, scored, strict=True)
        for quote in _quotes(number, passage, sentences)
    ]
    return sorted(filter(_states_something, quotes), key=lambda quote: (-quote.score, quote.number, quote.start))


def _quotes(number: int, passage: Passage, sentences: Scored) -> list[Quote]:
    """Every sentence of a passage as a quote; one that refers back is scored together with the sentence before it.

    "They are caused by the moon" says little by itself: half of what it is about stands in its predecessor.
    """
    quotes: list[Quote] = []
    before = 0.0
    for (start, end), own in zip(sentences.spans.tolist(), sentences.scores.tolist(), strict=True):
        text = " ".join(passage.text[start:end].split())
        if _begins_line(passage.text, start) and (marker := _MARKER.match(text)):
            text = text[marker.end() :]
        score = max(own, (own + before) / 2) if _REFERS_BACK.match(text) else own
        quotes.append(Quote(defuse_citations(text), number, passage.start + start, score))
        before = score
    return quotes


def _begins_line(text: str, start: int) -> bool:
    return not text[text.rfind("\n", 0, start) + 1 : start].strip()


def _states_something(quote: Quote) -> bool:
    """Headings, table rows, code and questions are often the nearest text to a question, and answer nothing.

    Of a fence that was cut, the last piece ends with the marker: behind it, citations would read as code.
    """
    text = quote.text
    if text.startswith(("#", "|")) or text.endswith(("?", "？", "؟")) or any(fence in text for fence in _FENCES):
        return False
    # Three words are a sentence in languages that put much into one; without a full stop they are a heading.
    without_stop = text.rstrip(_STOPS)
    return count_words(without_stop) >= (4 if without_stop == text else 3)


class ExtractiveAnswerer:
    """Answers with sentences of the sources, each cited, or says that they hold no answer."""

    name = "extractive"

    def __init__(self, settings: GeneratorSettings, embedder: Embeds) -> None:
        self._config = settings.generator.extractive
        self._evidence = SentenceEvidence(settings.store, embedder, self._config.evidence)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        """One `Delta` per sentence, up to the first stop text. `max_tokens` counts words; usage does, too: there is no
        tokenizer here."""
        started = time.perf_counter()
        passages = [passage for source in request.sources for passage in source.stored()]
        candidates = [Candidate(passage.text, passage.id, passage.title) for passage in passages]
        scored = await self._evidence.score(
            request.question_vector, request.question, candidates, request.collection, request.budget_s
        )
        best_first = candidate_quotes(request.sources, scored)
        quotes = choose_quotes(best_first, self._config)
        pieces = [f"{quote.text} [{quote.number}]" for quote in quotes] or [NOT_FOUND]
        # Half of "not found" would say nothing, or the contrary.
        ended = _before_stop(pieces, request.options.stop if quotes else ())
        written, cut = _within_words(ended, request.options.max_tokens if quotes else None)
        for index, piece in enumerate(written):
            yield Delta(piece if index == 0 else f" {piece}")
        read = sum(len(source.passage.text.split()) for source in request.sources)
        usage = Usage(read, sum(len(piece.split()) for piece in written))
        timing = StageTiming(compute_s=time.perf_counter() - started)
        confidence = min(max(best_first[0].score, 0.0), 1.0) if best_first else 0.0
        yield Generated("length" if cut else "stop", usage, timing, self.name, confidence)


def _within_words(pieces: Sequence[str], max_words: int | None) -> tuple[list[str], bool]:
    """The pieces up to `max_words` words, and whether something was cut."""
    if max_words is None:
        return list(pieces), False
    kept: list[str] = []
    left = max_words
    for piece in pieces:
        words = piece.split()
        if len(words) > left:
            if left:
                kept.append(" ".join(words[:left]))
            return kept, True
        kept.append(piece)
        left -= len(words)
    return kept, False


def _before_stop(pieces: Sequence[str], stop: Sequence[str]) -> list[str]:
    """The pieces up to the first stop text in what they make together."""
    answer = " ".join(pieces)
    end = min((at for at in map(answer.find, filter(None, stop)) if at >= 0), default=len(answer))
    kept: list[str] = []
    for piece in pieces:
        if end <= 0:
            break
        kept.append(piece[:end].rstrip())
        end -= len(piece) + 1
    return kept


class Generator:
    """The deployment around an answering engine; a language model has a deployment of its own (vllm_generator)."""

    def __init__(
        self,
        config: GeneratorConfig,
        store: StoreConfig,
        embedder: Any,
        telemetry: TelemetryConfig = ENABLED,
        embedding_model: str = "",
    ) -> None:
        from deployments.remote import RemoteEmbedder

        settings = GeneratorSettings(generator=config, store=store)
        way = RemoteEmbedder(embedder, model=embedding_model)
        self._engine: Generates = load_engine(config.engine, settings, way)
        self._busy = BusyClock("generate")
        export(telemetry, "generate", self._busy.read, way.dropped)
        settle()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        """The engine's events, none of them after the request's budget."""
        with self._busy:
            async with aclosing(self._within_budget(request)) as events:
                async for event in events:
                    yield event

    async def answer(self, calls: Sequence[Call[GenerateRequest]]) -> list[Outcome[tuple[GenerationEvent, ...]]]:
        """All events of each answer, one outcome per call, in order."""
        return await serve_each(calls, self._answer)

    async def _answer(self, request: GenerateRequest, budget_s: float) -> Timed[tuple[GenerationEvent, ...]]:
        with self._busy:
            async with aclosing(self._engine.generate(replace(request, budget_s=budget_s))) as stream:
                events = tuple([event async for event in stream])
        timing = next((event.timing for event in events if isinstance(event, Generated)), StageTiming())
        return Timed(events, timing)

    async def _within_budget(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        expires_at = asyncio.get_running_loop().time() + request.budget_s
        async with aclosing(self._engine.generate(request)) as events:
            while True:
                try:
                    async with asyncio.timeout_at(expires_at):
                        event = await anext(events, None)
                except TimeoutError:
                    raise DeadlineExceeded("the answer was not finished in time; raise timeout_s") from None
                if event is None:
                    return
                yield event

    async def describe(self) -> str:
        """Answers when the stage is ready."""
        return type(self._engine).__name__


def coalesces(config: GeneratorConfig) -> bool:
    """Whether questions travel to the engine several in a call, and answers back whole."""
    return config.engine == GeneratorConfig().engine if config.coalesce is None else config.coalesce


def has_fallback(config: GeneratorConfig) -> bool:
    """Whether the engine stands by as FALLBACK, a deployment of its own, beside a language model."""
    return config.vllm is not None and config.fallback


def generator_name(config: GeneratorConfig) -> str:
    """The name under which users see the generator."""
    if config.vllm is not None:
        return config.vllm.model_id
    return "extractive" if is_extractive(config) else config.engine


def is_extractive(config: GeneratorConfig) -> bool:
    """Whether answers are quotes alone, so that the generator can write nothing else."""
    return config.vllm is None and config.engine == GeneratorConfig().engine
