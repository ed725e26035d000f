"""AppConfig: everything that the code reads. Replicas, CPUs, GPUs and queue limits stand in the Serve config file."""

from __future__ import annotations

from pydantic import Field, model_validator

from deployments.context import ContextConfig
from deployments.embedder import EmbedderConfig
from deployments.exporter import TelemetryConfig
from deployments.generator import GeneratorConfig, is_extractive
from deployments.hop import HopConfig
from deployments.indexer import IndexerConfig
from deployments.reranker import RerankerConfig
from deployments.retriever import RetrieverConfig
from deployments.section import Section
from deployments.store import StoreConfig
from serve_app.api.services import HttpConfig
from serve_app.lane_config import LaneConfig
from serve_app.tracing import TracingConfig


class HopsConfig(Section):
    """How the ingress calls each stage."""

    embed: HopConfig = Field(default_factory=HopConfig, description="Calls to the Embedder.")
    search: HopConfig = Field(default_factory=HopConfig, description="Calls to the Retriever.")
    rerank: HopConfig = Field(default_factory=HopConfig, description="Calls to the Reranker.")
    generate: HopConfig = Field(
        default_factory=HopConfig, description="Calls to a Generator that coalesces, and to the fallback beside vLLM."
    )


class AppConfig(Section):
    """The `args` of the application in a Serve config file. `{}` is valid: it is the local profile."""

    http: HttpConfig = Field(default_factory=HttpConfig, description="The HTTP edge and its limits.")
    lane: LaneConfig = Field(default_factory=LaneConfig, description="What a request may ask for.")
    hops: HopsConfig = Field(default_factory=HopsConfig, description="Calls between the ingress and the stages.")
    store: StoreConfig = Field(default_factory=StoreConfig, description="Where the collections live.")
    embedder: EmbedderConfig = Field(default_factory=EmbedderConfig, description="The embed stage.")
    retriever: RetrieverConfig = Field(default_factory=RetrieverConfig, description="The search stage.")
    indexer: IndexerConfig = Field(default_factory=IndexerConfig, description="The writer of the collections.")
    reranker: RerankerConfig = Field(default_factory=RerankerConfig, description="The rerank stage.")
    context: ContextConfig = Field(default_factory=ContextConfig, description="The context stage.")
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig, description="The generate stage.")
    telemetry: TelemetryConfig = Field(default_factory=TelemetryConfig, description="What the server counts.")
    tracing: TracingConfig = Field(default_factory=TracingConfig, description="OpenTelemetry spans of requests.")

    @model_validator(mode="after")
    def _sections_agree(self) -> AppConfig:
        if self.lane.default_timeout_s > self.lane.max_timeout_s:
            raise ValueError("lane.default_timeout_s is above lane.max_timeout_s")
        if self.lane.default_k > self.lane.max_k:
            raise ValueError("lane.default_k is above lane.max_k")
        if self.lane.llm_rewriting.enabled and is_extractive(self.generator):
            raise ValueError("lane.llm_rewriting.enabled needs a language model; set generator.vllm or switch it off")
        limit = self.embedder.max_length_tokens
        if limit is not None and self.indexer.chunking.chunk_tokens > limit:
            raise ValueError("indexer.chunking.chunk_tokens is above embedder.max_length_tokens: passages would be cut")
        self._check_prompt_fits()
        self._check_in_process()
        return self

    def _check_in_process(self) -> None:
        inside = self.lane.in_process
        if "rerank" in inside and self.reranker.method == "cross_encoder":
            raise ValueError("lane.in_process: a cross-encoder needs a process of its own; leave out 'rerank'")
        if "generate" in inside and self.generator.vllm is not None:
            raise ValueError("lane.in_process: a language model needs processes of its own; leave out 'generate'")

    def _check_prompt_fits(self) -> None:
        vllm = self.generator.vllm
        max_model_len = vllm.engine_kwargs.get("max_model_len") if vllm is not None else None
        if isinstance(max_model_len, int) and self.context.max_context_tokens >= max_model_len:
            raise ValueError(
                f"context.max_context_tokens {self.context.max_context_tokens} leaves no room for the question and the "
                f"answer in generator.vllm.engine_kwargs.max_model_len {max_model_len}; lower it"
            )
