"""The rerank stage: how well each candidate answers the query, by a cross-encoder or by its best sentence."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from deployments.autoscaling import ItemCount
from deployments.batch_cutting import BatchingConfig
from deployments.batching import BatchEngine, MicroBatcher, raise_or_return
from deployments.contracts import Call, Outcome, RerankRequest, StageTiming, Timed, Vector
from deployments.engine_choice import AUTO, ModelEngines, load_model_engine
from deployments.errors import StageError
from deployments.evidence import EvidenceConfig, SentenceEvidence
from deployments.exporter import ENABLED, TelemetryConfig, export
from deployments.hop import serve_each
from deployments.models import Dtype, model_location, model_name
from deployments.padding import LENGTH_MULTIPLE, Padding
from deployments.positions import length_limit
from deployments.replica import settle
from deployments.section import Section
from deployments.store import StoreConfig
from deployments.tally import BusyClock
from deployments.tokenizing import BatchTokenizer
from deployments.torch_runtime import forward_pass, set_up

if TYPE_CHECKING:
    import torch
    from sentence_transformers import CrossEncoder

logger = logging.getLogger(__name__)

ENGINES = ModelEngines(
    torch="deployments.reranker:CrossEncoderScorer",
    openvino="deployments.openvino_scorer:OpenVinoScorer",
    packed="deployments.packed_scorer:PackedScorer",
)


class RerankerConfig(Section):
    """Which way of reranking, with which model."""

    method: Literal["sentence_evidence", "cross_encoder"] = Field(
        "sentence_evidence",
        description="sentence_evidence needs no model of its own; cross_encoder reads query and passage together.",
    )
    engine: str = Field(
        AUTO,
        description="Method cross_encoder: import path module:Class of the scoring engine. auto: "
        "deployments.openvino_scorer:OpenVinoScorer on an x86 CPU where OpenVINO is installed, "
        "deployments.packed_scorer:PackedScorer on a CUDA device, and deployments.reranker:CrossEncoderScorer "
        "elsewhere and for models that these can't run.",
    )
    model: str = Field("BAAI/bge-reranker-v2-m3", description="Cross-encoder: a model folder or a hub id.")
    device: str = Field("auto", description="cpu, cuda, cuda:N, mps, or auto: a GPU when torch sees one.")
    dtype: Dtype = Field("auto", description="auto: bfloat16 where the hardware computes in it, else float32.")
    num_threads: int = Field(2, ge=1, description="Threads of one forward pass on a CPU.")
    max_length_tokens: int | None = Field(
        None,
        ge=8,
        description="Longer pairs are cut, the longer of query and passage first; null: the model's own limit. "
        "Not above the positions that the model has learned.",
    )
    batching: BatchingConfig = Field(default_factory=BatchingConfig, description="How batches are cut.")
    evidence: EvidenceConfig = Field(
        default_factory=EvidenceConfig, description="Method sentence_evidence: how sentences are compared."
    )


Pair = tuple[str, str]


class ScoringEngine(BatchEngine[Pair, Any, float], Protocol):
    """Scores (query, passage) pairs; higher is better. Named in the config by import path, called with the config."""


class PairInputs:
    """What a cross-encoder reads of pairs: their token ids and segments, alone and as padded batches.

    `names` are the arrays that the model takes, `limit` the tokens of the longest pair. Two threads may use it, one for
    each method. Raises ConfigError where the model can't read pairs of the configured length.
    """

    def __init__(self, scorer: CrossEncoder, config: RerankerConfig, length_multiple: int = LENGTH_MULTIPLE) -> None:
        self.limit = length_limit(scorer, config.max_length_tokens)
        self._padding = Padding(self.limit, length_multiple)
        self._tokenizer = BatchTokenizer(scorer.tokenizer, self.limit)
        self.names = self._tokenizer.input_names

    def prepare(self, items: Sequence[Pair]) -> list[tuple[dict[str, list[int]], int] | StageError]:
        """Token ids of each pair; where a pair is too long, the longer of query and passage is cut first."""
        return [(row, self._padding.length(len(row["input_ids"]))) for row in self._tokenizer.pairs(items)]

    def pad(self, batch: Sequence[dict[str, list[int]]]) -> dict[str, NDArray[np.int64]]:
        """(len(batch), padded length) of each name."""
        fill = {"input_ids": self._tokenizer.pad_token_id}
        return {name: self._padding.pad([row[name] for row in batch], fill.get(name, 0)) for name in self.names}


class CrossEncoderScorer:
    """A sentence-transformers CrossEncoder; scores are what its own activation makes of the logit (sigmoid: 0 to 1)."""

    def __init__(self, config: RerankerConfig) -> None:
        import torch

        self._torch = torch
        device, dtype = set_up(config.device, config.dtype, config.num_threads)
        self._scorer = load_scorer(config.model, device, dtype)
        self._inputs = PairInputs(self._scorer, config)
        logger.info("reranking with %s on %s in %s", config.model, device, dtype)

    def prepare(self, items: Sequence[Pair]) -> list[tuple[dict[str, list[int]], int] | StageError]:
        """Token ids of each pair; where a pair is too long, the longer of query and passage is cut first."""
        return self._inputs.prepare(items)

    def run(self, batch: Sequence[dict[str, list[int]]]) -> list[float]:
        """One forward pass over the padded pairs."""
        arrays, device = self._inputs.pad(batch), self._scorer.device
        with forward_pass("reranker"):
            features = {name: self._torch.from_numpy(array).to(device) for name, array in arrays.items()}
            scores: list[float] = activated_scores(self._scorer, features).cpu().tolist()
        return scores


def load_scorer(model: str, device: str, dtype: torch.dtype) -> CrossEncoder:
    """The model named in a config, ready for inference."""
    from sentence_transformers import CrossEncoder

    return CrossEncoder(model_location(model), device=device, model_kwargs={"dtype": dtype}).eval()


def activated_scores(scorer: CrossEncoder, features: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows,) float32: the last label's logit through the model's own activation."""
    logits = scorer(features)["scores"].float()
    activated: torch.Tensor = scorer.activation_fn(logits)
    return activated.reshape(logits.shape[0], -1)[:, -1]


def load_scoring_engine(config: RerankerConfig) -> ScoringEngine:
    """The engine that the config names, built."""
    engine: ScoringEngine = load_model_engine(config.engine, config.device, ENGINES, config)
    return engine


class Reranker:
    """The deployment: scores candidates by the configured method."""

    def __init__(
        self,
        config: RerankerConfig,
        store: StoreConfig,
        embedder: Any,
        telemetry: TelemetryConfig = ENABLED,
        embedding_model: str = "",
    ) -> None:
        from deployments.remote import RemoteEmbedder

        self._batcher: MicroBatcher[Pair, Any, float] | None = None
        self._evidence: SentenceEvidence | None = None
        self._items = ItemCount()
        self._busy = BusyClock("rerank")
        if config.method == "cross_encoder":
            engine = load_scoring_engine(config)
            self._batcher = MicroBatcher(engine, config.batching, "reranker", "rerank")
            export(telemetry, "rerank", self._batcher.read)
        else:
            way = RemoteEmbedder(embedder, model=embedding_model)
            self._evidence = SentenceEvidence(store, way, config.evidence)
            export(telemetry, "rerank", self._busy.read, way.dropped)
        settle()

    async def rerank(self, calls: Sequence[Call[RerankRequest]]) -> list[Outcome[Vector]]:
        """One outcome per call, in order: (len(candidates),) float32, higher is better."""
        handler = self._rerank_pairs if self._batcher is not None else self._rerank_sentences
        with self._items.of(calls):
            return await serve_each(calls, handler)

    async def _rerank_pairs(self, request: RerankRequest, budget_s: float) -> Timed[Vector]:
        assert self._batcher is not None
        pairs = [(request.query, _text(candidate.title, candidate.text)) for candidate in request.candidates]
        scored = await self._batcher.submit(pairs, budget_s, request.priority)
        return Timed(np.array([raise_or_return(score) for score in scored.value], dtype=np.float32), scored.timing)

    async def _rerank_sentences(self, request: RerankRequest, budget_s: float) -> Timed[Vector]:
        assert self._evidence is not None
        started = time.perf_counter()
        with self._busy:
            scored = await self._evidence.score(
                request.query_vector, request.query, request.candidates, request.collection, budget_s
            )
        scores = np.array([candidate.best for candidate in scored], dtype=np.float32)
        return Timed(scores, StageTiming(compute_s=time.perf_counter() - started))

    async def describe(self) -> str:
        """Answers when the stage is ready."""
        return "cross_encoder" if self._batcher is not None else "sentence_evidence"

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The items in hand, for the policy `deployments.autoscaling:scale_by_items`."""
        return self._items.stats()

    def check_health(self) -> None:
        """Raise when the engine is dead, so that Serve replaces this replica."""
        if self._batcher is not None:
            self._batcher.check_health()


def scores_are_absolute(config: RerankerConfig) -> bool:
    """Whether scores of different requests compare: sentence evidence weighs words by the candidates of one request."""
    return config.method == "cross_encoder"


def reranker_name(config: RerankerConfig) -> str:
    """The name under which users see the reranker."""
    return "sentence-evidence" if config.method == "sentence_evidence" else model_name(config.model)


def _text(title: str, text: str) -> str:
    return f"{title}\n{text}" if title else text
