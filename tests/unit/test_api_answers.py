"""POST /v1/answers: one stream of events, as JSON and as server-sent events."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from deployments.contracts import GenerationOptions
from deployments.errors import EngineFailed, Overloaded
from tests.api import FakeServices, RawRequest, events_of

TIDES = "The moon pulls the tides of the sea. [1]"


async def test_an_answer_comes_with_its_citations_and_timings(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/answers", json={"question": "What pulls the tides?"})
    assert response.status_code == 200
    answer = response.json()
    assert answer["answer"] == TIDES
    assert answer["generator"] == "fake-generator"
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 9
    assert answer["degraded"] == []
    assert answer["request_id"] == response.headers["x-request-id"]
    (citation,) = answer["citations"]
    assert citation["score"] > 0
    del citation["score"]
    assert citation == {
        "number": 1,
        "document_id": "tides",
        "passage_id": "tides:0",
        "text": "The moon pulls the tides of the sea.",
        "title": "Tides",
        "source": "sea.txt",
    }


async def test_timings_name_every_stage_in_its_order(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/answers", json={"question": "What pulls the tides?"})
    timings = response.json()["timings"]
    stages = ["parse", "rewrite", "embed", "search", "rerank", "context", "generate"]
    assert list(dict.fromkeys(row["stage"] for row in sorted(timings, key=lambda row: row["start_s"]))) == stages
    assert {row["branch"] for row in timings if row["stage"] == "search"} == {"vector", "text", "fuse"}
    durations = {"start_s", "total_s", "queue_s", "batch_wait_s", "compute_s"}
    assert set(timings[0]) == {"stage", "branch", "batch_size"} | durations
    header = response.headers["server-timing"].split(", ")
    assert [part.partition(";")[0] for part in header] == [row["stage"] for row in timings]


async def test_a_streamed_answer_is_the_same_answer_in_events(client: httpx.AsyncClient) -> None:
    ask = {"question": "What pulls the tides?", "cache": False}
    whole = (await client.post("/v1/answers", json=ask)).json()
    response = await client.post("/v1/answers", json=ask | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    names = [name for name, _ in events]
    assert names == ["sources", *["token"] * 9, "done"]
    assert "".join(data["text"] for name, data in events if name == "token") == whole["answer"]
    sources, done = events[0][1], events[-1][1]
    # The two paragraphs about bees stand next to each other, and so are one source.
    assert [source["number"] for source in sources["sources"]] == [1, 2, 3]
    assert sources["request_id"] == done["request_id"] == response.headers["x-request-id"]
    assert done["citations"] == whole["citations"]
    assert set(done) == set(whole) - {"answer"}


async def test_an_error_before_the_first_event_of_a_stream_has_its_own_status(
    fakes: FakeServices, client: httpx.AsyncClient
) -> None:
    fakes.retriever.faults.error = Overloaded("the search queue is full", retry_after_s=2.5)
    response = await client.post("/v1/answers", json={"question": "tides", "stream": True})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.json()["error"]["type"] == "overloaded"


async def test_an_error_in_mid_stream_becomes_an_error_event(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    fakes.generator.fail_after = 2
    fakes.generator.faults.error = EngineFailed("the engine gave up")
    response = await client.post("/v1/answers", json={"question": "What pulls the tides?", "stream": True})
    assert response.status_code == 200
    events = events_of(response.text)
    assert [name for name, _ in events] == ["sources", "token", "token", "error"]
    request_id = response.headers["x-request-id"]
    assert events[-1][1] == {
        "error": {"type": "engine_failed", "message": "the engine gave up", "request_id": request_id}
    }


async def test_an_unforeseen_error_in_mid_stream_tells_no_detail(
    fakes: FakeServices, client: httpx.AsyncClient
) -> None:
    fakes.generator.fail_after = 1
    fakes.generator.faults.error = KeyError("secret")
    response = await client.post("/v1/answers", json={"question": "tides", "stream": True})
    name, data = events_of(response.text)[-1]
    assert (name, data["error"]["type"]) == ("error", "internal_error")
    assert "secret" not in response.text


async def test_a_generator_that_fails_half_way_fails_the_whole_json_answer(
    fakes: FakeServices, client: httpx.AsyncClient
) -> None:
    fakes.generator.fail_after = 2
    fakes.generator.faults.error = EngineFailed("the engine gave up")
    response = await client.post("/v1/answers", json={"question": "What pulls the tides?"})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "the engine gave up"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_generator(fakes: FakeServices, stream: bool) -> None:
    fakes.generator.fail_after = 2
    fakes.generator.faults.delay_s = 30
    request = RawRequest(fakes.api(), "/v1/answers", {"question": "What pulls the tides?", "stream": stream})
    await fakes.generator.begun.wait()
    assert fakes.generator.num_running == 1
    request.hang_up()
    await asyncio.wait_for(request.served, 60)
    assert fakes.generator.num_running == 0


async def test_a_client_that_leaves_between_two_tokens_stops_the_generator(fakes: FakeServices) -> None:
    ask = {"question": "What pulls the tides?", "stream": True}
    request = RawRequest(fakes.api(), "/v1/answers", ask, max_unread=1)
    start = await request.sent.get()
    assert start["status"] == 200
    first = await request.sent.get()
    assert first["body"].startswith(b"event: sources\n")
    await fakes.generator.begun.wait()
    assert fakes.generator.num_running == 1
    request.hang_up()
    await asyncio.wait_for(request.served, 60)
    assert fakes.generator.num_running == 0


async def test_a_question_past_its_deadline_is_answered_504(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    fakes.generator.faults.delay_s = 30
    response = await client.post("/v1/answers", json={"question": "tides", "timeout_s": 0.05})
    assert response.status_code == 504
    assert response.json()["error"]["type"] == "deadline_exceeded"


async def test_a_deadline_further_away_than_allowed_is_refused_with_the_limit(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/answers", json={"question": "tides", "timeout_s": 301})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "timeout_s is 301; ask for at most 300"


async def test_generation_options_reach_the_generator(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    options = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "stop": "sea", "seed": 7}
    response = await client.post("/v1/answers", json={"question": "tides"} | options)
    assert fakes.generator.requests[-1].options == GenerationOptions(3, 0.5, 0.9, ("sea",), 7)
    assert fakes.generator.requests[-1].request_id == response.headers["x-request-id"]
    assert response.json()["finish_reason"] == "length"
    assert response.json()["answer"].split() == ["The", "moon", "pulls"]


async def test_several_stop_texts_are_taken_as_a_list(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    await client.post("/v1/answers", json={"question": "tides", "stop": ["sea", "moon"]})
    assert fakes.generator.requests[-1].options.stop == ("sea", "moon")


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"question": "  "}, 400, "the question is empty"),
        ({"question": "x" * 9000}, 400, "shorten it to 8192"),
        ({"question": 5}, 422, "question: "),
        ({"collection": "nowhere"}, 404, "no collection 'nowhere'"),
        ({"k": 0}, 422, "k: "),
        ({"k": 1001}, 400, "at most 1000"),
        ({"timeout_s": 0}, 422, "timeout_s: "),
        ({"temperature": -1}, 422, "temperature: "),
        ({"stop": list("abcde")}, 422, "stop: send at most 4 texts of 256 characters"),
        ({"stop": "a" * 257}, 422, "stop: send at most 4 texts of 256 characters"),
        ({"questoin": "x"}, 422, "did you mean 'question'"),
        ({"filter": "year"}, 422, "filter: "),
    ],
)
async def test_bad_input_is_refused_with_what_to_change(
    client: httpx.AsyncClient, change: dict[str, object], status: int, named: str
) -> None:
    response = await client.post("/v1/answers", json={"question": "tides"} | change)
    assert response.status_code == status
    assert named in response.json()["error"]["message"]
