"""What a stage asks the embedder for and does not get is told among the stage's own metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from deployments import generator, reranker
from deployments.contracts import (
    Call,
    Candidate,
    EmbedRequest,
    GenerateRequest,
    Outcome,
    Passage,
    RerankRequest,
    Source,
)
from deployments.errors import EngineFailed
from deployments.generator import Generator, GeneratorConfig
from deployments.reranker import Reranker, RerankerConfig
from deployments.store import StoreConfig
from deployments.telemetry import DROPPED, Reading
from tests.handles import LocalHandle

TEXT = "The moon pulls the tides of the sea."


class BrokenEmbedder:
    async def embed(self, calls: Sequence[Call[EmbedRequest]]) -> list[Outcome[Any]]:
        return [Outcome(error=EngineFailed("broken")) for _ in calls]


async def quote(store: StoreConfig) -> None:
    stage = Generator(GeneratorConfig(), store, LocalHandle(BrokenEmbedder()))
    sources = (Source(1, Passage("", "", TEXT, 0.0)),)
    (outcome,) = await stage.answer([Call(GenerateRequest("What pulls the tides?", sources, ()), 60)])
    assert isinstance(outcome.error, EngineFailed)


async def rerank(store: StoreConfig) -> None:
    stage = Reranker(RerankerConfig(), store, LocalHandle(BrokenEmbedder()))
    (outcome,) = await stage.rerank([Call(RerankRequest("tides", (Candidate(TEXT),)), 60)])
    assert isinstance(outcome.error, EngineFailed)


@pytest.mark.parametrize(("module", "ask"), [(generator, quote), (reranker, rerank)], ids=["generate", "rerank"])
async def test_texts_that_the_embedder_failed_on_are_counted(
    module: Any, ask: Callable[[StoreConfig], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Callable[[], Sequence[Reading]]] = []
    monkeypatch.setattr(module, "export", lambda telemetry, stage, *sources: told.extend(sources))
    await ask(StoreConfig(uri=str(tmp_path)))
    dropped = [reading for source in told for reading in source() if reading[0] is DROPPED]
    # The question, then the text.
    assert dropped == [(DROPPED, ("embed", "failed"), 2)]
