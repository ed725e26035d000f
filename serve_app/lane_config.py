"""LaneConfig: what one request may ask for, what it gets when it does not say, and which features are on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deployments.contracts import SearchMode
from deployments.embedding_cache import EmbeddingCacheConfig
from deployments.llm_rewriting import LlmRewritingConfig
from deployments.parsing import ParsingConfig
from deployments.ranking import FusionConfig
from deployments.rewriting import RewritingConfig
from deployments.section import Section
from serve_app.answer_cache import AnswerCacheConfig

InProcessStage = Literal["search", "rerank", "generate"]
# The deployments that these stages have where they don't run inside the ingress.
DEPLOYMENT_OF: dict[InProcessStage, str] = {"search": "Retriever", "rerank": "Reranker", "generate": "Generator"}


class LaneConfig(Section):
    """What one request may ask for, and what it gets when it does not say."""

    default_collection: str = Field("docs", description="The collection that is used when a request names none.")
    default_timeout_s: float = Field(30.0, gt=0, description="A request's deadline when it sets no timeout_s.")
    max_timeout_s: float = Field(300.0, gt=0, description="The longest deadline that a request may set.")
    default_k: int = Field(10, ge=1, description="Results of a search, and sources considered for an answer.")
    max_k: int = Field(1000, ge=1, description="The most results that a search may ask for.")
    default_mode: SearchMode = Field("hybrid", description="How to search when a request does not say.")
    candidates_per_search: int = Field(
        100,
        ge=1,
        description="Passages that each of a hybrid search's searches returns, if k is not larger.",
    )
    rerank_candidates: int = Field(
        50, ge=1, description="Passages that are reranked: the best found. What else was asked for follows behind them."
    )
    rerank_weight: float = Field(
        1.2, ge=0, description="Weight of the rerank score in the final order, against 1 for the retrieval score."
    )
    rerank_timeout_s: float = Field(
        10.0, gt=0, description="Reranking that takes longer is left out of the answer, which says so in `degraded`."
    )
    embed_timeout_s: float = Field(
        10.0, gt=0, description="Embedding that takes longer is left out: text search alone answers, and says so."
    )
    first_word_timeout_s: float = Field(
        30.0,
        gt=0,
        description="A generator that has not begun its answer by then is stood in for, where there is a fallback.",
    )
    fallback_reserve_s: float = Field(
        1.0,
        gt=0,
        description="Time kept for the extractive answer when generation begins; at most a fifth of what is left.",
    )
    stage_deadline_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of what is left of the deadline that embedding, a search or reranking may take; then the "
        "others still have time to answer without it.",
    )
    in_process: tuple[InProcessStage, ...] = Field(
        (),
        description="Stages that run inside each ingress replica and have no deployment: search, rerank (by sentence "
        "evidence) and generate (without a language model) can. For a machine of few cores, where a call between "
        "processes costs more than they take; they scale with the ingress.",
    )
    concurrent: bool = Field(
        True, description="Run branches that need nothing of each other at the same time; false: one after the other."
    )
    parsing: ParsingConfig = Field(default_factory=ParsingConfig, description="The parse stage.")
    rewriting: RewritingConfig = Field(default_factory=RewritingConfig, description="The rewrite stage's rules.")
    llm_rewriting: LlmRewritingConfig = Field(
        default_factory=LlmRewritingConfig, description="The rewrite stage's language model."
    )
    embedding_cache: EmbeddingCacheConfig = Field(
        default_factory=EmbeddingCacheConfig, description="The cache in front of the embed stage."
    )
    fusion: FusionConfig = Field(default_factory=FusionConfig, description="How several searches become one order.")
    answer_cache: AnswerCacheConfig = Field(
        default_factory=AnswerCacheConfig, description="Answers that are given again without working them out again."
    )
