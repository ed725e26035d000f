"""The command line's HTTP client, against a real HTTP server in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serve_app.cli.client import (
    Client,
    RequestTooLarge,
    ServerEvent,
    parse_events,
    retry_delay_s,
    split_lines,
)
from serve_app.cli.exits import ExitCode, Failure
from tests.ports import free_port
from tests.stub_server import Reply, StubServer, error_reply, json_reply


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


def free_url() -> str:
    return f"http://127.0.0.1:{free_port()}"


def test_a_missing_server_is_named_with_the_command_that_starts_one() -> None:
    with Client(free_url()) as client, pytest.raises(Failure, match="no server answers") as failure:
        client.search({"query": "x"})
    assert failure.value.code is ExitCode.SERVER_STATE
    assert "raglane up" in failure.value.remedy


def test_a_proxy_of_the_environment_is_not_asked_for_a_local_server(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", free_url())
    stub.routes["GET /v1/collections"] = lambda _: json_reply({"collections": [{"name": "docs"}]})
    with Client(stub.url) as client:
        assert client.collections() == [{"name": "docs"}]


def test_an_error_of_the_server_is_told_in_its_own_words_with_the_request_id(stub: StubServer) -> None:
    stub.routes["POST /v1/search"] = lambda _: error_reply(404, "there is no collection 'nope'")
    with Client(stub.url) as client, pytest.raises(Failure) as failure:
        client.search({"query": "x"})
    assert failure.value.message == "there is no collection 'nope' (HTTP 404, request r-1)"
    assert failure.value.code is ExitCode.FAILED


def test_an_unavailable_stage_exits_as_not_ready(stub: StubServer) -> None:
    stub.routes["POST /v1/answers"] = lambda _: error_reply(503, "embed is starting")
    with Client(stub.url) as client, pytest.raises(Failure) as failure:
        client.answer({"question": "x"})
    assert failure.value.code is ExitCode.NOT_READY


def test_an_answer_of_something_else_than_raglane_is_refused(stub: StubServer) -> None:
    stub.routes["POST /v1/search"] = lambda _: (200, {"content-type": "text/html"}, b"<html>hello</html>")
    with Client(stub.url) as client, pytest.raises(Failure, match="JSON object"):
        client.search({"query": "x"})


def test_indexing_waits_as_long_as_the_server_asks_and_tries_again(stub: StubServer) -> None:
    replies: list[Reply] = [
        error_reply(429, "busy", retry_after="3"),
        error_reply(503, "restarting"),
        json_reply({"indexed": ["a"]}),
    ]
    stub.routes["POST /v1/documents"] = lambda _: replies.pop(0)
    slept: list[float] = []
    with Client(stub.url, sleep=slept.append) as client:
        assert client.index("docs", [{"id": "a"}]) == {"indexed": ["a"]}
    assert slept == [3.0, 1.0]
    assert stub.requests == [("POST /v1/documents", {"collection": "docs", "documents": [{"id": "a"}]})] * 3


def test_indexing_gives_up_once_its_patience_is_over(stub: StubServer) -> None:
    stub.routes["POST /v1/documents"] = lambda _: error_reply(429, "busy", retry_after="3")
    slept: list[float] = []
    with Client(stub.url, retry_for_s=1.0, sleep=slept.append) as client, pytest.raises(Failure, match="busy"):
        client.index("docs", [{"id": "a"}])
    assert slept == []


def test_a_request_too_large_is_told_apart_so_that_it_can_be_halved(stub: StubServer) -> None:
    stub.routes["POST /v1/documents"] = lambda _: error_reply(413, "too large")
    with Client(stub.url) as client, pytest.raises(RequestTooLarge):
        client.index("docs", [{"id": "a"}])


@pytest.mark.parametrize(
    ("headers", "attempt", "delay_s"),
    [
        ({"retry-after": "2.5"}, 0, 2.5),
        ({"retry-after": "3600"}, 0, 10.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 1, 1.0),
        ({}, 0, 0.5),
        ({}, 2, 2.0),
        ({}, 99, 10.0),
    ],
)
def test_the_delay_before_a_retry_is_the_servers_or_doubles_within_bounds(
    headers: dict[str, str], attempt: int, delay_s: float
) -> None:
    assert retry_delay_s(headers, attempt) == delay_s


def test_readiness_names_the_stages_that_are_not_ready(stub: StubServer) -> None:
    body = {"status": "not ready", "stages": {"embed": "loading", "search": "ready"}}
    stub.routes["GET /health/ready"] = lambda _: json_reply(body, 503)
    with Client(stub.url) as client:
        assert client.readiness() == (False, {"embed": "loading", "search": "ready"})


def test_readiness_of_a_silent_server_names_no_stage() -> None:
    with Client(free_url()) as client:
        assert client.readiness() == (False, {})


def test_events_are_read_with_their_names_and_with_data_of_several_lines() -> None:
    lines = [": hello", "event: token", 'data: {"text":', 'data: "a: b"}', "id: 7", "", "data:plain", "", "event: cut"]
    assert list(parse_events(lines)) == [
        ServerEvent("token", '{"text":\n"a: b"}'),
        ServerEvent("message", "plain"),
    ]


def test_lines_end_where_the_specification_says_however_the_text_was_cut() -> None:
    text = "data: a\u2028b\x85c\x0cd\r\n\ndata: e\n"
    whole = ["data: a\u2028b\x85c\x0cd", "", "data: e"]
    assert list(split_lines([text])) == whole
    assert list(split_lines(text)) == whole
    assert list(split_lines([text, "data: cut off"])) == whole


def test_a_line_separator_inside_a_token_does_not_cut_its_event(stub: StubServer) -> None:
    text = "one\u2028two\x85three"
    payload = f'event: token\ndata: {{"text": "{text}"}}\n\nevent: done\ndata: {{}}\n\n'.encode()
    stub.routes["POST /v1/answers"] = lambda _: (200, {"content-type": "text/event-stream"}, payload)
    with Client(stub.url) as client:
        events = list(client.stream_answer({"question": "q"}))
    assert events == [ServerEvent("token", f'{{"text": "{text}"}}'), ServerEvent("done", "{}")]


def test_a_streamed_answer_comes_as_events_and_asks_for_a_stream(stub: StubServer) -> None:
    payload = b'event: token\ndata: {"text": "Hi"}\n\nevent: done\ndata: {}\n\n'
    stub.routes["POST /v1/answers"] = lambda _: (200, {"content-type": "text/event-stream"}, payload)
    with Client(stub.url) as client:
        events = list(client.stream_answer({"question": "q"}))
    assert events == [ServerEvent("token", '{"text": "Hi"}'), ServerEvent("done", "{}")]
    assert stub.requests == [("POST /v1/answers", {"question": "q", "stream": True})]


def test_a_refused_stream_raises_the_servers_error(stub: StubServer) -> None:
    stub.routes["POST /v1/answers"] = lambda _: error_reply(422, "question: this field is required")
    with Client(stub.url) as client, pytest.raises(Failure, match="this field is required"):
        list(client.stream_answer({}))


def test_an_address_that_is_no_url_is_wrong_usage() -> None:
    with pytest.raises(Failure) as failure, Client("http://[::1") as client:
        client.collections()
    assert failure.value.code is ExitCode.USAGE
