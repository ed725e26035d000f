"""What both sides get: a tiny model that never ends an answer, an engine's arguments, and prompts like those of RAG."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiment import ExperimentError
from benchmarks.gpu.lane_plan import GenerationPlan, engine_arguments, engine_environment, plan_loads
from benchmarks.gpu.model_folders import make_decoder
from benchmarks.gpu.prompts import rebuild
from benchmarks.gpu.shapes import TINY_DECODER
from benchmarks.gpu.texts import Corpus, Document, load_corpus

NUM_DOCUMENTS = 200
MAX_CLIENTS = 256

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What is asked. A load has `requests_per_client` for each client, and no fewer than `min_requests`.

    A prompt has `num_sources` passages of at most `source_words` words. `engine_args` are vLLM's, for both sides.
    Raises ExperimentError for what can't be measured.
    """

    clients: tuple[int, ...]
    requests_per_client: int
    min_requests: int
    max_tokens: int
    num_sources: int
    source_words: int
    engine_args: Mapping[str, Any]
    corpus: Path
    seed: int

    def __post_init__(self) -> None:
        if max(self.clients) > MAX_CLIENTS:
            raise ExperimentError(f"at most {MAX_CLIENTS} clients can ask at a time")
        if self.requests_per_client < 3:
            # Answers of one length come in waves; between the first and the last there has to be one.
            raise ExperimentError("a load needs three requests of each client, or it has no steady part")
        if self.max_tokens < 2:
            raise ExperimentError("an answer needs two tokens, or there is no time between them")


@dataclass(frozen=True, slots=True)
class StreamInputs:
    """`prompts` has the chat messages of every request by load, in the order of the plan's loads."""

    plan: GenerationPlan
    prompts: tuple[tuple[Messages, ...], ...]
    texts: str


def make_inputs(options: StreamOptions, folder: Path) -> StreamInputs:
    """Write the model into `folder`, which is new, and make the rest. Raises ExperimentError for a bad corpus."""
    loads = plan_loads(options.clients, options.requests_per_client, options.min_requests)
    corpus = load_corpus(options.corpus, NUM_DOCUMENTS, sum(load.num_requests for load in loads), options.seed)
    prompts = iter(make_prompts(corpus, sum(load.num_requests for load in loads), options))
    by_load = tuple(tuple(next(prompts) for _ in range(load.num_requests)) for load in loads)
    texts = [message["content"] for load in by_load for messages in load for message in messages]
    model = make_decoder(TINY_DECODER, folder.absolute(), texts, ends=False)
    write_weights(model, options.seed)
    # A prompt that comes again, in another round, is to be as much work as it was.
    own_args = {"load_format": "auto", "enable_prefix_caching": False}
    plan = GenerationPlan(
        generator=str(model),
        engine_args=engine_arguments("cpu", None) | own_args | dict(options.engine_args),
        engine_env=engine_environment("cpu", os.cpu_count() or 1),
        loads=loads,
        max_tokens=options.max_tokens,
        # Both sides then compute the same.
        temperature=0.0,
    )
    return StreamInputs(plan, by_load, corpus.source)


def write_weights(model: Path, seed: int) -> None:
    """Add random weights to a model folder.

    Those that vLLM would make up are nearly zero: greedily, such a model writes the same two tokens over and over, and
    where one of them is no text, half of the answer would never be sent.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(model), initializer_range=TINY_DECODER.hidden**-0.5)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(str(model))


def make_prompts(corpus: Corpus, num_prompts: int, options: StreamOptions) -> list[Messages]:
    """Questions of the corpus, over and over, each with other sources, in the words of raglane's prompts."""
    rng = np.random.default_rng(options.seed)
    return [
        rebuild(
            corpus.questions[number % len(corpus.questions)],
            [
                _source(place, corpus.documents[index], options.source_words)
                for place, index in enumerate(_choose(rng, corpus.documents, options.num_sources), start=1)
            ],
        )
        for number in range(num_prompts)
    ]


def _choose(rng: np.random.Generator, documents: Sequence[Document], count: int) -> list[int]:
    chosen: list[int] = rng.choice(len(documents), size=min(count, len(documents)), replace=False).tolist()
    return chosen


def _source(number: int, document: Document, max_words: int) -> dict[str, Any]:
    """A source as an answer of raglane names it."""
    return {
        "number": number,
        "passage_id": f"{document.id}:0",
        "document_id": document.id,
        "title": document.title,
        "text": " ".join(document.text.split()[:max_words]),
        "score": 1.0,
    }
