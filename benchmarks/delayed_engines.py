"""Engines with known delays, which a server loads by import path: they show what the lane adds to its engines' time.

The only file of the benchmarks that runs inside the server, and so the only one that imports its packages. Delays come
from the environment, in seconds: RAGLANE_DELAY_EMBED, _VECTOR, _TEXT, _RERANK, _GENERATE, _REWRITE. They are waited
for, not computed, so that they stay what they are on a busy machine.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np

from benchmarks.delays import delay_s
from deployments.contracts import (
    Delta,
    EmbeddingModel,
    Embeds,
    Generated,
    GenerateRequest,
    GenerationEvent,
    Passage,
    SearchRequest,
    SearchResult,
    StageTiming,
    Usage,
)
from deployments.embedder import EmbeddedText, EmbedderConfig, Text
from deployments.errors import StageError
from deployments.generator import GeneratorSettings
from deployments.reranker import Pair, RerankerConfig
from deployments.retriever import RetrieverSettings

DIM = 8
NUM_PASSAGES = 10


class DelayedEncoder:
    """Gives every text the same vector, a batch at a time."""

    def __init__(self, config: EmbedderConfig) -> None:
        self.model = EmbeddingModel("delayed", DIM, 512)
        self._vector = np.full(DIM, DIM**-0.5, dtype=np.float32)

    def prepare(self, items: Sequence[Text]) -> list[tuple[int, int] | StageError]:
        return [(len(item.text.split()), 1) for item in items]

    def run(self, batch: Sequence[int]) -> list[EmbeddedText]:
        time.sleep(delay_s("EMBED"))
        return [EmbeddedText(self._vector, num_tokens) for num_tokens in batch]


class DelayedSearch:
    """Finds the same passages for everyone; searches of one call wait together."""

    def __init__(self, settings: RetrieverSettings) -> None:
        self._delays = {"vector": delay_s("VECTOR"), "text": delay_s("TEXT")}

    async def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult | StageError]:
        await asyncio.sleep(max(self._delays[request.kind] for request in requests))
        return [SearchResult(_passages(request), 1) for request in requests]

    async def versions(self, collections: Sequence[str]) -> list[int | StageError]:
        return [1] * len(collections)


def _passages(request: SearchRequest) -> tuple[Passage, ...]:
    count = min(request.k, NUM_PASSAGES)
    return tuple(Passage(f"{n}:0", str(n), f"Passage number {n} says so.", 1.0 - n / 100) for n in range(count))


class DelayedScorer:
    """A cross-encoder that finds the first the best."""

    def __init__(self, config: RerankerConfig) -> None:
        pass

    def prepare(self, items: Sequence[Pair]) -> list[tuple[Pair, int] | StageError]:
        return [(item, 1) for item in items]

    def run(self, batch: Sequence[Pair]) -> list[float]:
        time.sleep(delay_s("RERANK"))
        return [1.0 / (1 + place) for place in range(len(batch))]


class DelayedAnswerer:
    """Answers with one sentence, or with one sub-query where JSON is asked for."""

    def __init__(self, settings: GeneratorSettings, embedder: Embeds) -> None:
        pass

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        rewriting = request.options.json_schema is not None
        took_s = delay_s("REWRITE" if rewriting else "GENERATE")
        await asyncio.sleep(took_s)
        reply: dict[str, Any] = {"question": "", "queries": ["a sub-query of the language model"]}
        yield Delta(json.dumps(reply) if rewriting else "The first passage says so. [1]")
        yield Generated("stop", Usage(1, 1), StageTiming(compute_s=took_s), "delayed")
