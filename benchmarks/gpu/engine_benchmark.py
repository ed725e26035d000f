"""One model measured: its items, the ways to run it, and how they compare."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.batched import Batched, EngineSettings
from benchmarks.gpu.hardware import TERA, synchroniser
from benchmarks.gpu.libraries import FixedBatches, Library
from benchmarks.gpu.model_folders import make_encoder
from benchmarks.gpu.rounds import Timed, interleave
from benchmarks.gpu.shapes import EncoderShape
from benchmarks.gpu.texts import Corpus

Run = Callable[[], NDArray[np.float32]]
Texts = Literal["mixed", "documents", "questions"]

OURS = "raglane"
OURS_PADDED = "raglane, padded"
LIBRARY_ROWS = 32
TARGETS = {"over_library": 2.5, "over_best_fixed": 1.0}

TEXTS_PER_REQUEST = 1
PAIRS_PER_QUESTION = 20
LENGTH_PERCENTILES = (0, 10, 50, 90, 99, 100)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What is measured: `num_items` of the kind `texts`, in `num_rounds`; `peak_flops` is the most the device does."""

    engine: EngineSettings
    num_items: int
    texts: Texts
    num_rounds: int
    fixed_rows: Sequence[int]
    peak_flops: float | None


@dataclass(frozen=True, slots=True)
class Contender:
    """How one way of running the model did; `mfu` is None where the device's peak is not known.

    `tokens_per_s` counts what the model reads, special tokens included and padding not, by the median round.
    `max_deviation` is how far its results are from raglane's at most: 1 - cosine of vectors, difference of scores.
    """

    name: str
    median_s: float
    times_s: tuple[float, ...]
    items_per_s: float
    tokens_per_s: float
    tflops: float
    mfu: float | None
    max_deviation: float


class EngineBenchmark:
    """One model: its items, its contenders and what they took."""

    def __init__(self, shape: EncoderShape, folder: Path, corpus: Corpus, options: EngineOptions) -> None:
        self._shape = shape
        self._folder = folder
        self._corpus = corpus
        self._options = options
        self._items = make_items(shape, corpus, options.num_items, options.texts)

    def run(self) -> dict[str, Any]:
        """Return what the result file says of this model."""
        options, shape, engine = self._options, self._shape, self._options.engine
        texts = [document.whole for document in self._corpus.documents] + list(self._corpus.questions)
        make_encoder(shape, self._folder, texts, engine.device, engine.dtype)
        step = PAIRS_PER_QUESTION if shape.task == "rerank" else TEXTS_PER_REQUEST
        library = Library(shape, self._folder, engine.device, engine.dtype)
        fixed = FixedBatches(library)
        lengths = fixed.lengths(self._items)
        with ExitStack() as stack:
            ours, padded = (
                stack.enter_context(closing(Batched(shape, self._folder, settings, len(self._items), step)))
                for settings in (engine, replace(engine, is_padded=True))
            )
            work: dict[str, Run] = {
                OURS: partial(ours.run, self._items),
                OURS_PADDED: partial(padded.run, self._items),
                _library_name(shape): partial(library.run, self._items, LIBRARY_ROWS),
            }
            for num_rows in options.fixed_rows:
                work[fixed_name(num_rows)] = partial(fixed.run, self._items, num_rows)
            results, out_of_memory = _first_results(work)
            timed = interleave({name: work[name] for name in results}, options.num_rounds, synchroniser(engine.device))
        deviations = {name: max_deviation(results[OURS], own) for name, own in results.items()}
        contenders = [self._contender(name, timed[name], lengths, deviations[name]) for name in timed]
        return {
            "shape": asdict(shape) | {"matmul_params": shape.matmul_params, "num_params": shape.num_params},
            "batching": ours.batching.model_dump(),
            "items_per_request": step,
            "num_items": len(self._items),
            "num_tokens": sum(lengths),
            "length_percentiles": _percentiles(lengths),
            "contenders": [asdict(contender) for contender in contenders],
            "out_of_memory": out_of_memory,
            **compare(contenders, _library_name(shape)),
        }

    def _contender(self, name: str, timed: Timed, lengths: Sequence[int], deviation: float) -> Contender:
        peak = self._options.peak_flops
        flops_per_s = self._shape.forward_flops(lengths) / timed.median_s
        return Contender(
            name=name,
            median_s=timed.median_s,
            times_s=timed.times_s,
            items_per_s=len(lengths) / timed.median_s,
            tokens_per_s=sum(lengths) / timed.median_s,
            tflops=flops_per_s / TERA,
            mfu=flops_per_s / peak if peak else None,
            max_deviation=deviation,
        )


def make_items(shape: EncoderShape, corpus: Corpus, num_items: int, texts: Texts) -> list[Any]:
    """What the model gets: texts for an embedder, (question, document) pairs for a reranker, `num_items` in all.

    `texts` is documents, questions or, for an embedder, mixed: one of each in turn, as a server gets them that ingests
    while it answers.
    """
    documents = [document.whole for document in corpus.documents]
    if shape.task == "rerank":
        candidates = itertools.cycle(documents)
        num_questions = -(-num_items // PAIRS_PER_QUESTION)
        questions = itertools.islice(itertools.cycle(corpus.questions), num_questions)
        return [(question, next(candidates)) for question in questions for _ in range(PAIRS_PER_QUESTION)][:num_items]
    kinds: dict[str, list[str]] = {
        "documents": documents,
        "questions": list(corpus.questions),
        "mixed": [text for pair in zip(documents, corpus.questions, strict=False) for text in pair],
    }
    return list(itertools.islice(itertools.cycle(kinds[texts]), num_items))


def max_deviation(expected: NDArray[np.float32], results: NDArray[np.float32]) -> float:
    """How far results are from the expected ones at most: (n, dim) by 1 - cosine of the rows, (n,) by difference."""
    if expected.ndim == 1:
        return float(np.max(np.abs(expected - results)))
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(results, axis=1)
    return float(np.max(1.0 - np.sum(expected * results, axis=1) / norms))


def _first_results(work: Mapping[str, Run]) -> tuple[dict[str, NDArray[np.float32]], list[str]]:
    """What each contender makes of the items, which also warms it up, and whose batches the device can't hold."""
    import torch

    results: dict[str, NDArray[np.float32]] = {}
    out_of_memory: list[str] = []
    for name, run in work.items():
        try:
            results[name] = run()
        except torch.OutOfMemoryError:
            out_of_memory.append(name)
            torch.cuda.empty_cache()
    return results, out_of_memory


def compare(contenders: Sequence[Contender], library: str) -> dict[str, Any]:
    """raglane's tokens a second by those of the library's loop, and by those of the best fixed number of rows."""
    speed = {contender.name: contender.tokens_per_s for contender in contenders}
    best = max((name for name in speed if name not in (OURS, OURS_PADDED, library)), key=speed.__getitem__)
    ratios = {"over_library": speed[OURS] / speed[library], "over_best_fixed": speed[OURS] / speed[best]}
    met = {name: ratios[name] >= target for name, target in TARGETS.items()}
    return {"best_fixed": best, "ratios": ratios, "targets_met": met}


def fixed_name(num_rows: int) -> str:
    """What the table calls batches of this many rows."""
    return f"fixed {num_rows}"


def _library_name(shape: EncoderShape) -> str:
    return f"{'predict' if shape.task == 'rerank' else 'encode'} {LIBRARY_ROWS}"


def _percentiles(lengths: Sequence[int]) -> dict[str, int]:
    values = np.percentile(lengths, LENGTH_PERCENTILES, method="inverted_cdf").astype(int).tolist()
    return {str(percentile): value for percentile, value in zip(LENGTH_PERCENTILES, values, strict=True)}
