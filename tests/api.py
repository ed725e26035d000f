"""The HTTP room over the fakes, without a server: for tests that speak HTTP to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import Message

from deployments.context import ContextBuilder, ContextConfig
from deployments.contracts import Document
from serve_app.api.app import create_api
from serve_app.api.observation import Observer
from serve_app.api.services import HttpConfig, Services
from serve_app.lane_config import LaneConfig
from serve_app.node_metrics import Snapshot
from serve_app.pipeline import Lane
from serve_app.retrieval import Stages
from serve_app.stage_figures import StagesReport
from serve_app.stage_report import build_report
from tests.fakes import (
    EMBEDDING_MODEL,
    MAX_TOKENS,
    FakeEmbedder,
    FakeGenerator,
    FakeIndexer,
    FakeReranker,
    FakeRetriever,
    FakeStore,
    count_tokens,
)

RERANKER_MODEL = "fakes/shared-words"

DOCUMENTS = (
    Document("tides", "The moon pulls the tides of the sea.", "Tides", "sea.txt", {"year": 2001}),
    Document("bees", "Bees make honey from nectar.\n\nA hive has one queen.", "Bees", "bees.txt", {"year": 2010}),
    Document("notes/iron", "Iron rusts in moist air.", "Iron", "iron.txt", {"year": 2020}),
)


class FakeServices:
    """All fakes over one store that holds DOCUMENTS in collection `docs`, and the HTTP room in front of them."""

    def __init__(self, http: HttpConfig | None = None, lane: LaneConfig | None = None) -> None:
        self.http = http or HttpConfig()
        self.embedder = FakeEmbedder()
        self.store = FakeStore()
        self.retriever = FakeRetriever(self.store)
        self.reranker = FakeReranker()
        self.generator = FakeGenerator()
        self.indexer = FakeIndexer(self.store, self.embedder)
        stages = Stages(self.embedder, self.retriever, self.reranker, self.generator)
        self.lane = Lane(lane or LaneConfig(), ContextBuilder(ContextConfig(), count_tokens), stages)
        self.readiness: dict[str, str] = {"embed": "ready", "generate": "ready"}
        self.rerank_in_parts = True

    async def fill(self) -> None:
        await self.indexer.index("docs", DOCUMENTS, 1.0)
        self.embedder.requests.clear()

    async def _readiness(self) -> Mapping[str, str]:
        return self.readiness

    async def _report_stages(self, window_s: float) -> StagesReport:
        return build_report(Snapshot(window_s), Snapshot(0.0) if window_s else None)

    def services(self) -> Services:
        return Services(
            lane=self.lane,
            indexer=self.indexer,
            embedder=self.embedder,
            reranker=self.reranker,
            readiness=self._readiness,
            report_stages=self._report_stages,
            embedding_model=EMBEDDING_MODEL,
            reranker_model=RERANKER_MODEL,
            generator_model=self.generator.name,
            embedding_max_tokens=MAX_TOKENS,
            http=self.http,
            rerank_in_parts=self.rerank_in_parts,
        )

    def api(self, *observers: Observer) -> FastAPI:
        return create_api(self.services(), observers=observers)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.api()), base_url="http://raglane")


class RawRequest:
    """One POST driven message by message, for what an HTTP client can't do: look at a stream half-way and hang up."""

    def __init__(
        self, api: FastAPI, path: str, body: Mapping[str, Any], max_unread: int = 0, more_body: bool = False
    ) -> None:
        """With `max_unread` the app can't send more messages than that before some are taken from `sent`; with
        `more_body` it waits for more of the body."""
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": more_body})
        self.sent: asyncio.Queue[Message] = asyncio.Queue(max_unread)
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
        self.served = asyncio.ensure_future(api(scope, self._incoming.get, self.sent.put))

    def hang_up(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})


def events_of(stream: str) -> list[tuple[str, Any]]:
    """Name and data of each server-sent event; fails unless each is framed as two lines and an empty one."""
    assert stream.endswith("\n\n")
    events = []
    for block in stream[:-2].split("\n\n"):
        name, data = block.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events
