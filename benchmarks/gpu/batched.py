"""raglane's own way: a stage's engine behind its MicroBatcher, as a replica runs it.

With `prompts`, the only part of the kit that imports raglane's packages: here the engine itself is what is measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.shapes import EncoderShape
from deployments.batch_cutting import BatchingConfig
from deployments.batching import MicroBatcher, raise_or_return
from deployments.embedder import ENGINES as EMBEDDING_ENGINES
from deployments.embedder import EmbedderConfig, Text, load_embedding_engine
from deployments.engine_choice import AUTO
from deployments.models import Dtype
from deployments.reranker import ENGINES as SCORING_ENGINES
from deployments.reranker import RerankerConfig, load_scoring_engine

BUDGET_S = 3600.0


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine runs on and how its batches are cut; None leaves a number to the stage's own default.

    `is_padded` asks for the stage's plain torch engine, which pads, instead of the one that it chooses by itself.
    """

    device: str
    dtype: str
    num_threads: int
    max_batch_tokens: int | None = None
    max_batch_rows: int | None = None
    padding_slack_tokens: int | None = None
    max_padding_share: float | None = None
    is_padded: bool = False

    def batching(self, num_items: int) -> BatchingConfig:
        """The stage's config, with room for `num_items` that wait."""
        given = {
            "max_batch_tokens": self.max_batch_tokens,
            "max_batch_rows": self.max_batch_rows,
            "padding_slack_tokens": self.padding_slack_tokens,
            "max_padding_share": self.max_padding_share,
        }
        return BatchingConfig(
            max_waiting_items=num_items, **{name: value for name, value in given.items() if value is not None}
        )


class Batched:
    """Items of many callers, `items_per_request` of each, all of them waiting at once: a stage under full load."""

    def __init__(
        self, shape: EncoderShape, folder: Path, settings: EngineSettings, num_items: int, items_per_request: int
    ) -> None:
        self._is_reranker = shape.task == "rerank"
        self._items_per_request = items_per_request
        self.batching = settings.batching(num_items)
        engines = SCORING_ENGINES if self._is_reranker else EMBEDDING_ENGINES
        fields: dict[str, Any] = {
            "engine": engines.torch if settings.is_padded else AUTO,
            "model": str(folder),
            "device": settings.device,
            "dtype": cast(Dtype, settings.dtype),
            "num_threads": settings.num_threads,
            "batching": self.batching,
        }
        if self._is_reranker:
            config = RerankerConfig(method="cross_encoder", **fields)
            scorer = load_scoring_engine(config)
            self._batcher: MicroBatcher[Any, Any, Any] = MicroBatcher(scorer, self.batching, "reranker", "rerank")
        else:
            embedder_config = EmbedderConfig(**fields)
            encoder = load_embedding_engine(embedder_config)
            self._batcher = MicroBatcher(encoder, self.batching, "embedder", "embed")

    def run(self, items: Sequence[Any]) -> NDArray[np.float32]:
        """(len(items), dim) float32 vectors, or (len(items),) float32 scores, in the order of the items."""
        results = asyncio.run(self._answer_all(items))
        if self._is_reranker:
            return np.array(results, dtype=np.float32)
        return np.stack([result.vector for result in results])

    def close(self) -> None:
        """End the batcher's threads."""
        self._batcher.close()

    async def _answer_all(self, items: Sequence[Any]) -> list[Any]:
        if not self._is_reranker:
            items = [Text(item, "passage", truncate=True) for item in items]
        step = self._items_per_request
        requests = [self._batcher.submit(items[start : start + step], BUDGET_S) for start in range(0, len(items), step)]
        return [raise_or_return(result) for timed in await asyncio.gather(*requests) for result in timed.value]
