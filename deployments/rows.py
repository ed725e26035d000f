"""Rows: prepared documents and their vectors as what one commit writes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from deployments.contracts import EmbeddingModel, Vector
from deployments.evidence import quantise
from deployments.filters import filterable
from deployments.ingestion.preparation import Prepared
from deployments.store import TEXT_COLUMN, table_schema


@dataclass(frozen=True, slots=True)
class Batch:
    """What one commit writes: every chunk of some documents as an Arrow table, and the metadata keys they bring."""

    document_ids: tuple[str, ...]
    rows: Any
    fields: frozenset[str]


@dataclass(frozen=True, slots=True)
class Vectors:
    """(n, dim) float32 each, in the order of the documents: of every passage, of every sentence, of every title."""

    passages: Vector
    sentences: Vector
    titles: Vector


def batch_of(prepared: Sequence[Prepared], vectors: Vectors, model: EmbeddingModel, num_neighbours: int) -> Batch:
    """The prepared documents as one batch. Text search reads `num_neighbours` chunks on either side of each, too."""
    return Batch(
        document_ids=tuple(item.document.id for item in prepared),
        rows=_table(prepared, vectors, model, num_neighbours),
        fields=filterable(key for item in prepared for key in item.document.metadata),
    )


def _table(prepared: Sequence[Prepared], vectors: Vectors, model: EmbeddingModel, num_neighbours: int) -> Any:
    import pyarrow as pa

    quantised = quantise(vectors.sentences)
    titles = iter(quantise(vectors.titles))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    columns: dict[str, list[Any]] = defaultdict(list)
    sentence_at = 0
    for item in prepared:
        metadata = json.dumps(dict(item.document.metadata))
        title_vector = next(titles).tobytes() if item.has_title else b""
        columns[TEXT_COLUMN].extend(item.searchable(num_neighbours))
        for position, (chunk, spans) in enumerate(zip(item.chunks, item.spans, strict=True)):
            columns["id"].append(f"{item.document.id}:{position}")
            columns["document_id"].append(item.document.id)
            columns["position"].append(position)
            columns["text"].append(chunk.text)
            columns["title"].append(item.document.title)
            columns["source"].append(item.document.source)
            columns["metadata"].append(metadata)
            columns["start"].append(chunk.start)
            columns["end"].append(chunk.end)
            columns["num_tokens"].append(chunk.num_tokens)
            columns["indexed_at"].append(now)
            columns["sentence_spans"].append([offset for span in spans for offset in span])
            columns["sentence_vectors"].append(quantised[sentence_at : sentence_at + len(spans)].tobytes())
            columns["title_vector"].append(title_vector)
            sentence_at += len(spans)
    schema = table_schema(model.dim, model.name)
    flat = pa.array(np.ascontiguousarray(vectors.passages).ravel())
    arrays = [
        pa.FixedSizeListArray.from_arrays(flat, model.dim)
        if field.name == "vector"
        else pa.ExtensionArray.from_storage(field.type, pa.array(columns["metadata"], field.type.storage_type))
        if field.name == "metadata"
        else pa.array(columns[field.name], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
