"""POST /v1/embeddings, through the real openai client and by hand."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import numpy as np
import openai
import pytest

from serve_app.api.services import HttpConfig
from tests.api import FakeServices
from tests.fakes import DIM, EMBEDDING_MODEL, MAX_TOKENS, count_tokens


@pytest.fixture
def fakes() -> FakeServices:
    return FakeServices(HttpConfig(max_inputs=10, chunk_texts=4, chunk_bytes=1024, max_text_bytes=2048))


@pytest.fixture
async def openai_client(fakes: FakeServices) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.ASGITransport(fakes.api())
    async with httpx2.AsyncClient(transport=transport) as http_client:
        yield openai.AsyncOpenAI(api_key="unused", base_url="http://raglane/v1", http_client=http_client, max_retries=0)


async def test_a_text_becomes_a_unit_vector(openai_client: openai.AsyncOpenAI) -> None:
    embedded = await openai_client.embeddings.create(model=EMBEDDING_MODEL, input="the moon", encoding_format="float")
    assert embedded.model == EMBEDDING_MODEL
    assert len(embedded.data) == 1
    assert len(embedded.data[0].embedding) == DIM
    assert np.linalg.norm(embedded.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert embedded.usage.prompt_tokens == embedded.usage.total_tokens == count_tokens("the moon")


async def test_base64_and_float_hold_the_same_numbers(
    openai_client: openai.AsyncOpenAI, client: httpx.AsyncClient
) -> None:
    ask = {"input": ["the moon"], "encoding_format": "base64"}
    raw = (await client.post("/v1/embeddings", json=ask)).json()["data"][0]["embedding"]
    by_hand = np.frombuffer(base64.b64decode(raw), "<f4")
    numbers = await openai_client.embeddings.create(model=EMBEDDING_MODEL, input="the moon", encoding_format="float")
    # The openai client asks for base64 by itself where it is told nothing.
    decoded = await openai_client.embeddings.create(model=EMBEDDING_MODEL, input="the moon")
    assert by_hand.tolist() == pytest.approx(numbers.data[0].embedding, abs=1e-7)
    assert decoded.data[0].embedding == by_hand.tolist()


async def test_a_long_list_travels_in_several_messages_and_keeps_its_order(
    fakes: FakeServices, client: httpx.AsyncClient
) -> None:
    texts = [f"text number {number}" for number in range(10)]
    response = await client.post("/v1/embeddings", json={"input": texts})
    assert [len(request.texts) for request in fakes.embedder.requests] == [4, 4, 2]
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(10))
    alone = await client.post("/v1/embeddings", json={"input": texts[7]})
    assert data[7]["embedding"] == alone.json()["data"][0]["embedding"]
    assert response.json()["usage"]["prompt_tokens"] == 10 * count_tokens("text number 0")


async def test_large_texts_travel_in_messages_of_their_own(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    await client.post("/v1/embeddings", json={"input": ["a" * 600, "b" * 600, "c", "d"]})
    assert [len(request.texts) for request in fakes.embedder.requests] == [1, 3]


async def test_a_list_does_not_push_questions_aside(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    await client.post("/v1/embeddings", json={"input": "one"})
    await client.post("/v1/embeddings", json={"input": ["one", "two"], "input_type": "query"})
    assert [request.priority for request in fakes.embedder.requests] == ["interactive", "bulk"]
    assert [request.role for request in fakes.embedder.requests] == ["passage", "query"]


async def test_the_model_may_be_named_short_or_not_at_all(client: httpx.AsyncClient) -> None:
    for name in (EMBEDDING_MODEL, EMBEDDING_MODEL.split("/")[1], None):
        response = await client.post("/v1/embeddings", json={"input": "x", "model": name})
        assert response.json()["model"] == EMBEDDING_MODEL


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"input": ""}, 400, "input[0] is empty"),
        ({"input": []}, 400, "input is empty"),
        ({"input": ["a", " "]}, 400, "input[1] is empty"),
        ({"input": [1, 2, 3]}, 400, "token ids are not accepted; send the text itself"),
        ({"input": [[1, 2], [3]]}, 400, "token ids are not accepted; send the text itself"),
        ({"input": {"text": "x"}}, 400, "input: "),
        ({}, 400, "input: this field is required"),
        ({"input": "x " * MAX_TOKENS}, 400, f"has {MAX_TOKENS + 2} tokens, but the model takes {MAX_TOKENS}"),
        ({"input": "x" * 2049}, 400, "more than 2048 bytes"),
        ({"input": ["x"] * 11}, 413, "send at most 10 at a time"),
        ({"input": "x", "dimensions": DIM - 1}, 400, f"has {DIM}; leave dimensions out"),
        ({"input": "x", "encoding_format": "int8"}, 400, "encoding_format: "),
        ({"input": "x", "model": "text-embedding-3-small"}, 404, f"use '{EMBEDDING_MODEL}'"),
    ],
)
async def test_bad_input_is_refused_with_what_to_change(
    client: httpx.AsyncClient, body: dict[str, Any], status: int, message: str
) -> None:
    response = await client.post("/v1/embeddings", json=body)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_the_models_own_dimensions_may_be_asked_for(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/embeddings", json={"input": "x", "dimensions": DIM})
    assert response.status_code == 200


async def test_one_failing_message_fails_the_request_and_stops_the_others(
    fakes: FakeServices, client: httpx.AsyncClient
) -> None:
    fakes.embedder.faults.delay_s = 30
    response = await client.post("/v1/embeddings", json={"input": ["x"] * 10, "timeout_s": 0.02})
    assert response.status_code == 504
