"""Chat and models, through the real openai client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest

from deployments.contracts import GenerationOptions
from deployments.errors import EngineFailed, Overloaded
from deployments.parsing import ParsingConfig
from serve_app.lane_config import LaneConfig
from tests.api import RERANKER_MODEL, FakeServices
from tests.fakes import EMBEDDING_MODEL, MAX_TOKENS

TIDES = "The moon pulls the tides of the sea. [1]"
QUESTION: Any = [{"role": "user", "content": "What pulls the tides?"}]


@pytest.fixture
async def client(fakes: FakeServices) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.ASGITransport(fakes.api())
    async with httpx2.AsyncClient(transport=transport) as http_client:
        yield openai.AsyncOpenAI(api_key="unused", base_url="http://raglane/v1", http_client=http_client, max_retries=0)


async def test_a_chat_is_answered_from_the_documents(client: openai.AsyncOpenAI) -> None:
    completion = await client.chat.completions.create(model="raglane", messages=QUESTION)
    choice = completion.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == TIDES
    assert choice.finish_reason == "stop"
    assert completion.object == "chat.completion"
    assert completion.model == "raglane"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 9
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 9


async def test_what_openai_has_no_place_for_stands_in_an_extra_field(client: openai.AsyncOpenAI) -> None:
    completion: Any = await client.chat.completions.create(model="raglane", messages=QUESTION)
    extra = completion.raglane
    assert extra["citations"][0]["document_id"] == "tides"
    assert extra["generator"] == "fake-generator"
    assert extra["degraded"] == []
    assert [row["stage"] for row in extra["timings"]][-1] == "generate"
    assert completion.id == f"chatcmpl-{extra['request_id']}"
    assert completion._request_id == extra["request_id"]


async def test_a_streamed_chat_adds_up_to_the_same_answer(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="raglane", messages=QUESTION, stream=True)
    chunks: list[Any] = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TIDES
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 10 + ["stop"]
    assert {chunk.id for chunk in chunks} == {f"chatcmpl-{chunks[-1].raglane['request_id']}"}
    assert chunks[-1].raglane["citations"][0]["document_id"] == "tides"


async def test_a_stream_ends_with_its_usage_where_asked_for(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="raglane", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 9
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


async def test_a_stream_ends_with_the_done_mark(fakes: FakeServices) -> None:
    async with fakes.client() as client:
        ask = {"model": "raglane", "messages": QUESTION, "stream": True}
        response = await client.post("/v1/chat/completions", json=ask)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\ndata: [DONE]\n\n")


async def test_an_error_in_mid_stream_is_raised_by_the_client(fakes: FakeServices, client: openai.AsyncOpenAI) -> None:
    fakes.generator.fail_after = 1
    fakes.generator.faults.error = EngineFailed("the engine gave up")
    stream = await client.chat.completions.create(model="raglane", messages=QUESTION, stream=True)
    with pytest.raises(openai.APIError, match="the engine gave up"):
        _ = [chunk async for chunk in stream]


async def test_an_error_before_the_stream_has_its_own_status(fakes: FakeServices, client: openai.AsyncOpenAI) -> None:
    fakes.retriever.faults.error = Overloaded("the search queue is full", 2)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="raglane", messages=QUESTION, stream=True)
    assert caught.value.response.headers["retry-after"] == "2"
    assert caught.value.code == "overloaded"
    assert caught.value.type == "rate_limit_error"


@pytest.mark.parametrize(
    ("model", "extra_body", "collection"),
    [
        ("raglane", None, "docs"),
        ("raglane/other", None, "other"),
        ("raglane", {"collection": "other"}, "other"),
        ("raglane/other", {"collection": "other"}, "other"),
    ],
)
async def test_the_model_or_an_extra_field_names_the_collection(
    fakes: FakeServices, client: openai.AsyncOpenAI, model: str, extra_body: Any, collection: str
) -> None:
    await fakes.indexer.create_collection("other")
    await client.chat.completions.create(model=model, messages=QUESTION, extra_body=extra_body)
    assert fakes.retriever.requests[-1].collection == collection


@pytest.mark.parametrize("model", ["gpt-4o", "raglane/", "raglane/nowhere", "other/docs"])
async def test_an_unknown_model_is_not_found(client: openai.AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model=model, messages=QUESTION)
    assert caught.value.code == "not_found"
    assert caught.value.type == "invalid_request_error"


async def test_a_model_and_a_collection_that_disagree_are_refused(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="disagree"):
        await client.chat.completions.create(
            model="raglane/docs", messages=QUESTION, extra_body={"collection": "other"}
        )


async def test_the_last_user_message_is_the_question(fakes: FakeServices, client: openai.AsyncOpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "You are terse."},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "What makes honey?"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "What pulls"}, {"type": "text", "text": "the tides?"}]},
        {"role": "assistant", "content": "Hm."},
    ]
    completion = await client.chat.completions.create(model="raglane", messages=messages)
    assert completion.choices[0].message.content == TIDES
    assert fakes.retriever.requests[-1].text == "What pulls the tides?"


async def test_an_answer_that_came_back_as_parts_is_what_the_next_question_refers_to(
    fakes: FakeServices, client: openai.AsyncOpenAI
) -> None:
    parts = [{"type": "refusal", "refusal": "No."}, {"type": "text", "text": "Gustave Eiffel designed it."}]
    messages: Any = [
        {"role": "user", "content": "Who designed it?"},
        {"role": "assistant", "content": parts},
        {"role": "user", "content": "When was he born?"},
    ]
    await client.chat.completions.create(model="raglane", messages=messages)
    assert fakes.retriever.requests[-1].text == "When was Gustave Eiffel born?"


async def test_a_filter_that_the_lane_knows_stays_with_its_turn() -> None:
    config = LaneConfig(parsing=ParsingConfig(filter_fields=("lang",)), default_collection="docs")
    fakes = FakeServices(lane=config)
    await fakes.fill()
    messages = [
        {"role": "user", "content": "What makes honey? lang:it"},
        {"role": "assistant", "content": "Bees."},
        {"role": "user", "content": "And when?"},
    ]
    async with fakes.client() as http_client:
        ask = {"model": "raglane", "messages": messages}
        assert (await http_client.post("/v1/chat/completions", json=ask)).status_code == 200
    assert "And when? (What makes honey?)" in {request.text for request in fakes.retriever.requests}
    assert not any(request.filter for request in fakes.retriever.requests)


async def test_sampling_options_reach_the_generator(fakes: FakeServices, client: openai.AsyncOpenAI) -> None:
    await client.chat.completions.create(
        model="raglane",
        messages=QUESTION,
        max_completion_tokens=5,
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        stop=["sea"],
        seed=7,
        user="someone",
    )
    assert fakes.generator.requests[-1].options == GenerationOptions(5, 0.5, 0.9, ("sea",), 7)


async def test_options_at_their_neutral_value_and_unknown_ones_are_ignored(client: openai.AsyncOpenAI) -> None:
    completion = await client.chat.completions.create(
        model="raglane",
        messages=QUESTION,
        n=1,
        presence_penalty=0,
        response_format={"type": "text"},
        stop=None,
        extra_body={"some_other_server_knows": True},
    )
    assert completion.choices[0].message.content == TIDES


@pytest.mark.parametrize(
    "option",
    [
        {"n": 2},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"presence_penalty": 1.0},
    ],
)
async def test_an_option_that_can_not_be_honoured_is_refused_by_name(
    client: openai.AsyncOpenAI, option: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError, match=f"{next(iter(option))} is not supported here; leave it out"):
        await client.chat.completions.create(model="raglane", messages=QUESTION, **option)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: "),
        ([{"role": "system", "content": "x"}], "no message with role 'user'"),
        ([{"role": "user", "content": " "}], "the question is empty"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url' is not supported"),
        ([{"content": "x"}], "messages.0.role: this field is required"),
    ],
)
async def test_messages_that_hold_no_question_are_refused(
    client: openai.AsyncOpenAI, messages: Any, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        await client.chat.completions.create(model="raglane", messages=messages)


async def test_the_field_at_fault_is_named_as_openai_names_it(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="raglane", messages=QUESTION, temperature=3)
    assert caught.value.param == "temperature"


async def test_every_collection_is_a_model(fakes: FakeServices, client: openai.AsyncOpenAI) -> None:
    await fakes.indexer.create_collection("other")
    models = [model async for model in client.models.list()]
    assert [model.id for model in models] == [
        "raglane",
        "raglane/docs",
        "raglane/other",
        EMBEDDING_MODEL,
        RERANKER_MODEL,
    ]
    assert {model.owned_by for model in models} == {"raglane"}


async def test_a_model_is_described_by_its_name(client: openai.AsyncOpenAI) -> None:
    chat: Any = await client.models.retrieve("raglane/docs")
    assert chat.id == "raglane/docs"
    assert chat.root == "fake-generator"
    embedder: Any = await client.models.retrieve(EMBEDDING_MODEL)
    assert embedder.max_model_len == MAX_TOKENS
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-4o")
