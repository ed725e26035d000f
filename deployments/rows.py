"""Rows: prepared documents and their vectors as the Arrow table of one commit."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from deployments.contracts import EmbeddingModel, Vector
from deployments.evidence import quantise
from deployments.ingestion.preparation import Prepared
from deployments.store import table_schema


def table_rows(prepared: Sequence[Prepared], passages: Vector, sentences: Vector, model: EmbeddingModel) -> Any:
    """The Arrow table of one commit; `passages` and `sentences` in the order of the prepared documents."""
    import pyarrow as pa

    quantised = quantise(sentences)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    columns: dict[str, list[Any]] = defaultdict(list)
    sentence_at = 0
    for item in prepared:
        metadata = json.dumps(dict(item.document.metadata))
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
            sentence_at += len(spans)
    schema = table_schema(model.dim, model.name)
    flat = pa.array(np.ascontiguousarray(passages).ravel())
    arrays = [
        pa.FixedSizeListArray.from_arrays(flat, model.dim)
        if field.name == "vector"
        else pa.ExtensionArray.from_storage(field.type, pa.array(columns["metadata"], field.type.storage_type))
        if field.name == "metadata"
        else pa.array(columns[field.name], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
