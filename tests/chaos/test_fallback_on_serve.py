"""What callers see when the generator fails and another one stands by, on real Ray Serve.

The application beside a language model, but with a test engine in the language model's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve import Application

from deployments.embedder import Embedder
from deployments.generator import FALLBACK, Generator, GeneratorConfig
from deployments.indexer import Indexer
from deployments.reranker import Reranker
from deployments.retriever import Retriever
from serve_app.app import Ingress
from serve_app.config import AppConfig
from tests.engines import until_none_runs
from tests.serving import StartApp
from tests.sse import events_of

CONFIG = {
    "embedder": {"engine": "tests.engines:WordHashEncoder"},
    "reranker": {"method": "cross_encoder", "engine": "tests.engines:SleepyScorer"},
    "generator": {"engine": "tests.engines:Counter"},
    "lane": {"default_collection": "notes", "fallback_reserve_s": 5},
}
QUESTION = "Document 2 speaks of topic2, matter2 and theme2?"
QUOTE = "Document 2 speaks of topic2, matter2 and theme2. [1]"


def with_fallback(config: AppConfig) -> Application:
    """The engine of the config generates, and the extractive answerer is its fallback."""
    embedder = deploy(Embedder).bind(config.embedder)
    nodes = {
        "Embedder": embedder,
        "Retriever": deploy(Retriever).bind(config.retriever, config.store),
        "Indexer": deploy(Indexer).bind(config.indexer, config.store, config.embedder.model, embedder),
        "Reranker": deploy(Reranker).bind(config.reranker, config.store, embedder),
        "Generator": deploy(Generator).bind(config.generator, config.store, embedder),
        FALLBACK: deploy(Generator, FALLBACK).bind(GeneratorConfig(), config.store, embedder),
    }
    return deploy(serve.ingress()(Ingress)).bind(config, nodes)


def deploy(stage: type, name: str = "") -> serve.Deployment:
    return serve.deployment(
        stage,
        name=name or stage.__name__,
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 0.2},
        health_check_period_s=2,
    )


@pytest.fixture(scope="module")
def url(start_app: StartApp) -> str:
    url = start_app(CONFIG, with_fallback)
    documents = [{"id": f"d{n}", "text": f"Document {n} speaks of topic{n}, matter{n} and theme{n}."} for n in range(5)]
    taken = httpx.post(f"{url}/v1/documents", json={"collection": "notes", "documents": documents}, timeout=60)
    assert len(taken.json()["indexed"]) == 5
    return url


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


async def ask(client: httpx.AsyncClient, question: str, **options: Any) -> httpx.Response:
    return await client.post("/v1/answers", json={"question": question, "rerank": False} | options)


def assert_quotes_document_2(answer: dict[str, Any], degraded: list[str]) -> None:
    assert answer["answer"] == QUOTE
    assert [citation["document_id"] for citation in answer["citations"]] == ["d2"]
    assert (answer["generator"], answer["degraded"]) == ("extractive", degraded)


async def test_the_fallback_stands_by_and_leaves_the_answers_to_the_generator(client: httpx.AsyncClient) -> None:
    ready = (await client.get("/health/ready")).json()
    assert ready["stages"][FALLBACK] == "ready"
    answer = (await ask(client, f"count 3 {QUESTION}")).json()
    assert (answer["answer"], answer["generator"], answer["degraded"]) == ("0 1 2 ", "counter", [])


@pytest.mark.parametrize("order", ["fail 0", "fail 3"])
async def test_an_answer_at_which_the_generator_fails_is_the_fallbacks_alone(
    client: httpx.AsyncClient, order: str
) -> None:
    response = await ask(client, f"{order} {QUESTION}")
    assert response.status_code == 200
    assert_quotes_document_2(response.json(), degraded=["generate"])
    branches = [row["branch"] for row in response.json()["timings"] if row["stage"] == "generate"]
    assert branches == ["fallback"]
    assert "secret" not in response.text


async def test_the_fallback_also_answers_openai_clients(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": f"fail 3 {QUESTION}"}]
    chat = (await client.post("/v1/chat/completions", json={"model": "raglane", "messages": messages})).json()
    assert chat["choices"][0]["message"]["content"] == QUOTE
    assert "generate" in chat["raglane"]["degraded"]


async def test_a_stream_falls_back_before_its_first_word(client: httpx.AsyncClient) -> None:
    body = {"question": f"fail 0 {QUESTION}", "stream": True, "rerank": False}
    async with client.stream("POST", "/v1/answers", json=body) as response:
        (first, _), *tokens, (last, end) = [event async for event in events_of(response)]
    assert (first, {name for name, _ in tokens}, last) == ("sources", {"token"}, "done")
    text = "".join(data["text"] for _, data in tokens)
    assert_quotes_document_2(end | {"answer": text}, degraded=["generate"])


async def test_a_stream_whose_first_words_are_out_ends_with_an_error(client: httpx.AsyncClient) -> None:
    body = {"question": f"fail 3 {QUESTION}", "stream": True, "rerank": False}
    async with client.stream("POST", "/v1/answers", json=body) as response:
        names = [name async for name, _ in events_of(response)]
    assert names == ["sources", "token", "token", "token", "error"]


async def test_a_generator_that_is_too_slow_is_stopped_in_time_for_the_fallback(
    client: httpx.AsyncClient, running_file: Path
) -> None:
    response = await ask(client, f"for ever {QUESTION}", timeout_s=15)
    assert response.status_code == 200
    assert_quotes_document_2(response.json(), degraded=["generate"])
    await until_none_runs(running_file)


async def test_words_alone_answer_where_no_model_works(client: httpx.AsyncClient) -> None:
    response = await ask(client, f"fail 0 POISON {QUESTION}", rerank=True)
    assert response.status_code == 200
    assert_quotes_document_2(response.json(), degraded=["embed", "rerank", "generate"])


async def test_a_generator_whose_process_dies_is_replaced_and_the_fallback_answers(client: httpx.AsyncClient) -> None:
    response = await ask(client, f"exit 3 {QUESTION}")
    assert response.status_code == 200
    assert_quotes_document_2(response.json(), degraded=["generate"])
    async with asyncio.timeout(300):
        while (await ask(client, f"count 3 {QUESTION}", cache=False)).json()["generator"] != "counter":  # noqa: ASYNC110
            await asyncio.sleep(0.5)
