"""Engines with known behaviour, named by import path in test configs: they run inside real replicas."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from deployments.contracts import (
    Delta,
    EmbeddingModel,
    Embeds,
    Generated,
    GenerateRequest,
    GenerationEvent,
    StageTiming,
    Usage,
)
from deployments.embedder import EmbeddedText, EmbedderConfig, Text
from deployments.errors import EngineDead, StageError
from deployments.generator import GeneratorSettings
from deployments.reranker import Pair, RerankerConfig

DIM = 384


class WordHashEncoder:
    """Texts that share words are near each other. Words in the text make it misbehave:

    DIE kills the engine, POISON makes the forward pass raise, EXIT ends the process, SLEEP takes half a second.
    """

    def __init__(self, config: EmbedderConfig) -> None:
        self.model = EmbeddingModel("word-hash", DIM, 256)

    def prepare(self, items: Sequence[Text]) -> list[tuple[list[str], int] | StageError]:
        return [(item.text.split(), max(1, len(item.text.split()))) for item in items]

    def run(self, batch: Sequence[list[str]]) -> list[EmbeddedText]:
        words = {word for text in batch for word in text}
        if "EXIT" in words:
            os._exit(1)
        if "DIE" in words:
            raise EngineDead("the test engine was told to die")
        if "POISON" in words:
            raise ValueError("poison")
        if "SLEEP" in words:
            time.sleep(0.5)
        return [EmbeddedText(_vector(text), len(text)) for text in batch]


def _vector(words: Sequence[str]) -> Any:
    vector = np.full(DIM, 1e-3, dtype=np.float32)
    for word in words:
        digest = blake2b(word.lower().strip(".,?!").encode(), digest_size=4).digest()
        vector[int.from_bytes(digest, "little") % DIM] += 1.0
    return vector / np.linalg.norm(vector)


class SleepyScorer:
    """A cross-encoder that takes as many seconds as the query says (`sleep 2`) and counts its calls in a file."""

    def __init__(self, config: RerankerConfig) -> None:
        self._lock = threading.Lock()

    def prepare(self, items: Sequence[Pair]) -> list[tuple[Pair, int] | StageError]:
        return [(item, 1) for item in items]

    def run(self, batch: Sequence[Pair]) -> list[float]:
        query = batch[0][0].split()
        if query[0] == "sleep":
            time.sleep(float(query[1]))
        if query[0] == "fail":
            raise ValueError("told to fail")
        return [1.0 / (1 + index) for index in range(len(batch))]


class Counter:
    """A generator that counts up for ever, one number each 20 ms. The question's first words tell it to stop early:

    `count 3` ends the answer after three numbers, `fail 3` raises then, `exit 3` ends the process.
    """

    def __init__(self, settings: GeneratorSettings, embedder: Embeds) -> None:
        self.num_running = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        words = request.question.split()
        limit = int(words[1]) if words[0] in ("count", "fail", "exit") else 10**6
        path = os.environ.get("RAGLANE_TEST_RUNNING_FILE")
        try:
            _note(path, +1)
            for number in range(limit):
                yield Delta(f"{number} ")
                await asyncio.sleep(0.02)
            if words[0] == "fail":
                raise RuntimeError("the secret of the engine")
            if words[0] == "exit":
                _note(path, -1)
                os._exit(1)
            yield Generated("stop", Usage(1, limit), StageTiming(compute_s=0.02 * limit), "counter")
        finally:
            _note(path, -1)


def _note(path: str | None, change: int) -> None:
    if path:
        with open(path, "a") as file:
            file.write(f"{change:+d}\n")


def num_running(file: Path) -> int:
    """How many counters count, by the file in which they note it."""
    return sum(int(line) for line in file.read_text().split()) if file.exists() else 0


async def until_none_runs(file: Path) -> None:
    """Wait until every counter has stopped."""
    for _ in range(1200):
        if num_running(file) == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the generator still counts for nobody")


class Planner:
    """A generator that is asked for sub-queries: `plan` proposes the question's last word backwards, `ramble` writes
    no JSON, and any other question is simple enough."""

    def __init__(self, settings: GeneratorSettings, embedder: Embeds) -> None:
        pass

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        words = request.question.split()
        queries = [words[-1][::-1]] if words[0] == "plan" else []
        reply = json.dumps({"question": "", "queries": queries})
        yield Delta("Let me think." if words[0] == "ramble" else reply)
        yield Generated("stop", Usage(), StageTiming(), "planner")
