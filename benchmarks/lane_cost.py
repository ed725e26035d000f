"""`python -m benchmarks.lane_cost`: what one answer and one search cost the ingress beside their stages and hops.

The HTTP room and the lane run in this process over stages that answer at once; there is no server, no Ray and no
client, so the time is what Python computes for one request. What a hop pays to send a search's passages, and to receive
them, is timed apart. A median of some hundred requests of a millisecond each can be told to a few percent even on a
machine that is too busy to measure any throughput on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pickle
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import count
from benchmarks.command import record
from deployments.context import ContextBuilder, ContextConfig
from deployments.contracts import (
    Delta,
    Embeddings,
    EmbedRequest,
    Generated,
    GenerateRequest,
    GenerationEvent,
    Indexes,
    Passage,
    RerankRequest,
    SearchRequest,
    SearchResult,
    StageTiming,
    Timed,
    Usage,
    Vector,
)
from serve_app.answer_cache import AnswerCacheConfig
from serve_app.api.app import create_api
from serve_app.api.services import HttpConfig, Services
from serve_app.lane_config import LaneConfig
from serve_app.pipeline import Lane
from serve_app.retrieval import Stages

QUESTION = "What pulls the tides of the sea, and how long do they take to turn?"
SENTENCE = "The moon pulls the tides of the sea, says number {number} of those who were asked. "
REQUESTS: Mapping[str, Mapping[str, Any]] = {
    "/v1/answers": {"question": QUESTION, "collection": "docs", "cache": False},
    "/v1/search": {"query": QUESTION, "collection": "docs"},
}
# What a hop does with the passages of one search.
SENT = "pickle a search's passages"
RECEIVED = "unpickle them"
WARMUP_TIMES = 20
_INSTANT = StageTiming()


class InstantStages:
    """All of the lane's stages. Every search finds the same passages, and reranking keeps their order."""

    def __init__(self, num_candidates: int, passage_chars: int) -> None:
        """Passages of `passage_chars` characters, no two of which are near duplicates."""
        numbers = range(num_candidates)
        texts = ((SENTENCE.format(number=number) * (passage_chars // 64 + 1))[:passage_chars] for number in numbers)
        self._passages = tuple(
            Passage(f"{number}:0", str(number), text, 1.0 - number / (2 * num_candidates))
            for number, text in enumerate(texts)
        )
        self._vector = np.full((1, 384), 384**-0.5, np.float32)

    async def embed(self, request: EmbedRequest, budget_s: float) -> Timed[Embeddings]:
        return Timed(Embeddings(np.repeat(self._vector, len(request.texts), axis=0), len(request.texts)), _INSTANT)

    async def search(self, request: SearchRequest, budget_s: float) -> Timed[SearchResult]:
        return Timed(SearchResult(self._passages[: request.k], 1), _INSTANT)

    async def version(self, collection: str, budget_s: float) -> Timed[int]:
        return Timed(1, _INSTANT)

    async def rerank(self, request: RerankRequest, budget_s: float) -> Timed[Vector]:
        return Timed(np.linspace(1, 0, len(request.candidates), dtype=np.float32), _INSTANT)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        yield Delta("The moon does. [1]")
        yield Generated("stop", Usage(1, 1), _INSTANT, "instant")

    async def readiness(self) -> Mapping[str, str]:
        return {}

    def services(self) -> Services:
        """What the HTTP room needs; nobody indexes here or asks for the report."""
        config = LaneConfig(answer_cache=AnswerCacheConfig(enabled=False))
        context = ContextBuilder(ContextConfig(), lambda text: len(text) // 4)
        return Services(
            lane=Lane(config, context, Stages(self, self, self, self)),
            indexer=cast(Indexes, None),
            embedder=self,
            reranker=self,
            readiness=self.readiness,
            report_stages=cast(Any, None),
            embedding_model="instant",
            reranker_model="instant",
            generator_model="instant",
            embedding_max_tokens=512,
            http=HttpConfig(),
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that `what` takes once, a request to a path or a part of a hop: the median and the quarter's bounds."""

    what: str
    num_times: int
    p25_s: float
    p50_s: float
    p75_s: float


def measure(stages: InstantStages, seconds: float) -> list[Cost]:
    """The cost of each of REQUESTS and of each part of a hop, each done again and again for so long. Raises
    RuntimeError where a request fails."""
    api = create_api(stages.services())

    async def run() -> list[Cost]:
        costs = []
        for path, body in REQUESTS.items():
            ask = partial(_request, api, path, json.dumps(body).encode())
            costs.append(await _cost(path, ask, seconds))
        found = (await stages.search(SearchRequest("docs", k=sys.maxsize), budget_s=60.0)).value
        pickled = pickle.dumps(found, pickle.HIGHEST_PROTOCOL)

        async def send() -> None:
            pickle.dumps(found, pickle.HIGHEST_PROTOCOL)

        async def receive() -> None:
            pickle.loads(pickled)

        costs.append(await _cost(SENT, send, seconds))
        costs.append(await _cost(RECEIVED, receive, seconds))
        return costs

    return asyncio.run(run())


async def _cost(what: str, do: Callable[[], Awaitable[None]], seconds: float) -> Cost:
    for _ in range(WARMUP_TIMES):
        await do()
    taken: list[float] = []
    ends_at = time.perf_counter() + seconds
    while len(taken) < 2 or time.perf_counter() < ends_at:
        started = time.perf_counter()
        await do()
        taken.append(time.perf_counter() - started)
    return Cost(what, len(taken), *quantiles(taken, n=4, method="inclusive"))


async def _request(api: Any, path: str, body: bytes) -> None:
    """One POST, as a server hands it to the application; an HTTP client would cost as much as what is measured."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    left: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    statuses: list[int] = []

    async def receive() -> Any:
        return messages.pop() if messages else await left

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"raglane")],
        "client": ("127.0.0.1", 1),
        "server": ("raglane", 80),
    }
    await api(scope, receive, send)
    if statuses != [200]:
        raise RuntimeError(f"{path} answered {statuses}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console()
    return record(
        "benchmarks.lane_cost",
        arguments,
        console,
        lambda: _result(options),
        # No server is asked.
        url="",
        allow_remote=True,
        out=options.out,
        default_name="lane-cost",
        show=lambda result: console.print(_table(result)),
    )


def _result(options: argparse.Namespace) -> dict[str, Any]:
    costs = measure(InstantStages(options.candidates, options.chars), options.seconds)
    return {
        "candidates": options.candidates,
        "passage_chars": options.chars,
        "seconds": options.seconds,
        "costs": [asdict(cost) for cost in costs],
    }


def _table(result: Mapping[str, Any]) -> Table:
    title = f"{result['candidates']} passages of {result['passage_chars']} characters"
    table = Table(title, "times", "p25 µs", "p50 µs", "p75 µs")
    for cost in result["costs"]:
        times = (f"{1e6 * cost[name]:.0f}" for name in ("p25_s", "p50_s", "p75_s"))
        table.add_row(cost["what"], str(cost["num_times"]), *times)
    return table


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lane_cost", description=__doc__)
    parser.add_argument("--candidates", type=count, default=50, help="passages that a search finds (default: 50)")
    parser.add_argument("--chars", type=count, default=1500, help="characters of a passage (default: 1500)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each is done (default: 10)")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/lane-cost-UTC.json)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
