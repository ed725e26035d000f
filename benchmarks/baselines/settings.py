"""What the baselines are configured with: raglane's own sections, and the numbers of its lane."""

from __future__ import annotations

import os

from pydantic import Field

from deployments.context import ContextConfig
from deployments.embedder import EmbedderConfig
from deployments.generator import GeneratorConfig
from deployments.parsing import ParsingConfig
from deployments.ranking import FusionConfig
from deployments.reranker import RerankerConfig
from deployments.retriever import RetrieverConfig
from deployments.rewriting import RewritingConfig
from deployments.section import Section
from deployments.store import StoreConfig


def store_of_environment() -> StoreConfig:
    """The store of the data folder $RAGLANE_DATA, where `raglane up` keeps it; raglane's default if that is not set."""
    folder = os.environ.get("RAGLANE_DATA")
    return StoreConfig(uri=f"{folder}/lancedb") if folder else StoreConfig()


class BaselineConfig(Section):
    """The `args` of a baseline. Where it says nothing, it does what raglane's local profile does."""

    store: StoreConfig = Field(default_factory=store_of_environment)
    embedder: EmbedderConfig = Field(default_factory=EmbedderConfig)
    retriever: RetrieverConfig = Field(default_factory=RetrieverConfig)
    reranker: RerankerConfig = Field(default_factory=RerankerConfig)
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig)
    context: ContextConfig = Field(default_factory=ContextConfig)
    parsing: ParsingConfig = Field(default_factory=ParsingConfig)
    rewriting: RewritingConfig = Field(default_factory=RewritingConfig)
    fusion: FusionConfig = Field(default_factory=FusionConfig)
    default_collection: str = "docs"
    default_k: int = Field(10, ge=1)
    max_k: int = Field(50, ge=1, description="No more than are reranked: what follows behind them is not kept.")
    candidates_per_search: int = Field(100, ge=1)
    rerank_candidates: int = Field(50, ge=1)
    rerank_weight: float = Field(1.2, ge=0)
    batch_wait_timeout_s: float | None = Field(
        None, ge=0, description="How long @serve.batch waits for a batch to fill; null: its own default, 10 ms."
    )
