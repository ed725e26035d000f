"""The ways to beat: the library's own loop, and batches of a fixed size cut by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.shapes import EncoderShape

# Tensor cores want it; what a careful hand does anyway.
LENGTH_MULTIPLE = 8


class Library:
    """`SentenceTransformer.encode` or `CrossEncoder.predict`: rows sorted by length, `batch_size` of them at a time."""

    def __init__(self, shape: EncoderShape, folder: Path, device: str, dtype: str) -> None:
        import torch
        from sentence_transformers import CrossEncoder, SentenceTransformer

        self.is_reranker = shape.task == "rerank"
        model_class: Any = CrossEncoder if self.is_reranker else SentenceTransformer
        self.model = model_class(str(folder), device=device, model_kwargs={"dtype": getattr(torch, dtype)})
        self.model.eval()

    def run(self, items: Sequence[Any], batch_size: int) -> NDArray[np.float32]:
        """(len(items), dim) vectors or (len(items),) scores, in the order of the items."""
        work = self.model.predict if self.is_reranker else self.model.encode
        results = work(list(items), batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(results, dtype=np.float32)


class FixedBatches:
    """What a careful engineer writes by hand for a job of known size: the best that a fixed number of rows can do.

    Everything is tokenised at once, on all cores, and sorted by length; batches follow each other without waiting for
    the device, and the results are fetched once, at the end.
    """

    def __init__(self, library: Library) -> None:
        self._model = library.model
        self._tokenizer = library.model.tokenizer
        self._is_reranker = library.is_reranker
        self._names: list[str] = list(self._tokenizer.model_input_names)
        self._limit = int(self._tokenizer.model_max_length)

    def run(self, items: Sequence[Any], num_rows: int) -> NDArray[np.float32]:
        """(len(items), dim) vectors or (len(items),) scores, in the order of the items."""
        import torch

        rows = self._tokenise(items)
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))
        outputs = []
        with torch.inference_mode():
            for start in range(0, len(order), num_rows):
                outputs.append(self._forward([rows[index] for index in order[start : start + num_rows]]))
            results = torch.cat(outputs).float().cpu().numpy()
        in_order = np.empty_like(results)
        in_order[order] = results
        return in_order

    def lengths(self, items: Sequence[Any]) -> list[int]:
        """Tokens of each item as the model reads it, special tokens included."""
        return [len(row["input_ids"]) for row in self._tokenise(items)]

    def _tokenise(self, items: Sequence[Any]) -> list[dict[str, list[int]]]:
        columns = [list(column) for column in zip(*items, strict=True)] if self._is_reranker else [list(items)]
        encoded = self._tokenizer(*columns, truncation=True, max_length=self._limit, padding=False, verbose=False)
        return [{name: encoded[name][row] for name in self._names} for row in range(len(items))]

    def _forward(self, rows: Sequence[dict[str, list[int]]]) -> Any:
        import torch

        device = self._model.device
        features = {name: torch.from_numpy(self._rectangle(name, rows)).to(device) for name in self._names}
        out = self._model(features)
        if self._is_reranker:
            return self._model.activation_fn(out["scores"].float()).reshape(-1)
        return torch.nn.functional.normalize(out["sentence_embedding"].float(), dim=-1)

    def _rectangle(self, name: str, rows: Sequence[dict[str, list[int]]]) -> NDArray[np.int64]:
        longest = max(len(row[name]) for row in rows)
        width = min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, self._limit)
        fill = self._tokenizer.pad_token_id if name == "input_ids" else 0
        filled = np.full((len(rows), width), fill, dtype=np.int64)
        for index, row in enumerate(rows):
            filled[index, : len(row[name])] = row[name]
        return filled
