"""The loops and the client against a small HTTP server with known delays and errors."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from benchmarks.client import RequestClient
from benchmarks.connections import Connections, is_loopback
from benchmarks.experiment import ClosedLoad, OpenLoad, ReplayLoad, SingleLoad, Target
from benchmarks.load import Arrival, Limits, LoadGenerator
from benchmarks.records import Sample
from tests.http_server import listening
from tests.virtual_time import ticking

TIMINGS = [
    {"stage": "embed", "total_s": 0.02, "queue_s": 0.01, "batch_wait_s": 0.004, "compute_s": 0.006, "batch_size": 3}
]


class Server:
    """Answers by path. `/gate` holds every answer until `gate_opens_at` requests wait; the first `/stall` blocks."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.client_ports: list[int] = []
        self.num_waiting = 0
        self.max_waiting = 0
        self.gate_opens_at = 1
        self.gate_delay_s = 0.0
        self.gate = asyncio.Event()
        self.stall_s = 0.0
        self.client_left = asyncio.Event()
        paths = {
            "/ok": self.ok, "/gate": self.wait_at_gate, "/stall": self.stall, "/status/{code:int}": self.status,
            "/text": self.text, "/wrong": self.wrong, "/never": self.never, "/stream": self.stream,
            "/stream/{end}": self.stream, "/broken": self.broken,
        }  # fmt: skip
        self.app = Starlette(routes=[Route(path, handler, methods=["POST"]) for path, handler in paths.items()])

    async def ok(self, request: Request) -> Response:
        self.queries.append((await request.json())["query"])
        assert request.client is not None
        self.client_ports.append(request.client.port)
        return JSONResponse({"results": [], "timings": TIMINGS, "degraded": ["rerank"]})

    async def wait_at_gate(self, request: Request) -> Response:
        self.num_waiting += 1
        self.max_waiting = max(self.max_waiting, self.num_waiting)
        if self.num_waiting >= self.gate_opens_at:
            asyncio.get_running_loop().call_later(self.gate_delay_s, self.gate.set)
        await self.gate.wait()
        self.num_waiting -= 1
        return JSONResponse({})

    async def stall(self, request: Request) -> Response:
        if not self.stall_s:
            begun_s = time.perf_counter()
            time.sleep(0.3)
            self.stall_s = time.perf_counter() - begun_s
        return JSONResponse({})

    async def status(self, request: Request) -> Response:
        code = request.path_params["code"]
        return JSONResponse({"error": {"type": "x", "message": f"because {code}", "request_id": "1"}}, code)

    async def text(self, request: Request) -> Response:
        return Response("hello")

    async def wrong(self, request: Request) -> Response:
        return JSONResponse({"timings": [{"stage": "embed"}]})

    async def never(self, request: Request) -> Response:
        self.num_waiting += 1
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.client_left.set()
        return JSONResponse({})

    async def broken(self, request: Request) -> Response:
        return Response("{}", headers={"Content-Length": "1000"})

    async def stream(self, request: Request) -> Response:
        end = request.path_params.get("end", "done")

        async def events() -> AsyncIterator[str]:
            yield "event: sources\r\ndata: []\r\n\r\n"
            for token in ("a\u2028b", "c", "d"):
                yield f"event: token\ndata: {json.dumps({'text': token}, ensure_ascii=False)}\n\n"
                await asyncio.sleep(0.02)
            if end == "error":
                yield 'event: error\ndata: {"message": "engine died"}\n\n'
            elif end == "done":
                yield f"event: done\ndata: {json.dumps({'answer': 'abcd', 'timings': TIMINGS})}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


async def send(path: str, *, stream: bool = False) -> Sample:
    async with listening(Server().app) as url, Connections(url) as connections:
        client = RequestClient(connections, Target(path=path), timeout_s=60.0, stream=stream)
        return await client.send(b'{"query": "q"}', time.perf_counter(), time.perf_counter)


async def drive(
    server: Server, path: str, load: SingleLoad, limits: Limits, queries: Sequence[str] = ("q",)
) -> list[Sample]:
    target = Target(path=path, body={"query": "{query}"})
    async with listening(server.app) as url, Connections(url) as connections:
        client = RequestClient(connections, target, timeout_s=60.0)
        return await LoadGenerator(client, [target.encode(query) for query in queries], limits, (7, 0, 0)).run(load)


async def test_a_closed_loop_keeps_as_many_requests_in_flight_as_it_has_clients_and_no_more() -> None:
    server = Server()
    server.gate_opens_at = 5
    samples = await drive(server, "/gate", ClosedLoad(kind="closed", clients=5), Limits(600.0, 20))
    assert server.max_waiting == 5
    assert len(samples) == 20
    assert {sample.error_kind for sample in samples} == {None}


async def test_a_closed_loop_starts_nothing_after_the_horizon_and_waits_for_what_it_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "perf_counter", ticking(0.01))
    samples = await drive(Server(), "/ok", ClosedLoad(kind="closed", clients=2), Limits(0.3, 10**6))
    assert len(samples) >= 2
    assert all(sample.intended_start_s < 0.3 for sample in samples)
    assert {sample.status for sample in samples} == {200}


async def test_the_same_seed_sends_the_same_queries_in_the_same_order() -> None:
    queries = [f"query {number}" for number in range(10)]
    sent = []
    for _ in range(2):
        server = Server()
        await drive(server, "/ok", ClosedLoad(kind="closed", clients=1), Limits(600.0, 25), queries)
        sent.append(server.queries)
    assert len(sent[0]) == 25
    assert sent[0] == sent[1]
    assert sent[0][:10] != queries


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    server = Server()
    server.gate_opens_at = 30  # a loop that waited for one answer before it sent the next would never get there
    load = OpenLoad(kind="open", rate_per_s=500)
    samples = await drive(server, "/gate", load, Limits(20.0, 30))
    assert len(samples) == 30
    assert server.max_waiting == 30
    assert {sample.error_kind for sample in samples} == {None}


async def test_an_open_loops_latency_counts_from_the_intended_start_through_a_stall() -> None:
    server = Server()
    load = OpenLoad(kind="open", rate_per_s=100, arrivals="constant")
    samples = await drive(server, "/stall", load, Limits(1.0, 100))
    assert {sample.error_kind for sample in samples} == {None}
    intended = sorted(sample.intended_start_s for sample in samples)
    assert intended == pytest.approx([number / 100 for number in range(100)])
    # Nothing is answered before the stall ends, and the load began before it: what was meant to start t seconds into
    # the load waited for the rest of the stall, although the stall kept the client itself from sending it on time.
    assert all(sample.latency_s >= server.stall_s - sample.intended_start_s for sample in samples)
    assert any(sample.start_s > sample.intended_start_s + 0.1 for sample in samples)


async def test_an_open_loop_counts_what_its_own_bound_kept_from_being_sent() -> None:
    server = Server()
    server.gate_opens_at, server.gate_delay_s = 4, 0.5
    load = OpenLoad(kind="open", rate_per_s=1000, max_in_flight=4)
    samples = await drive(server, "/gate", load, Limits(20.0, 50))
    assert len(samples) == 50
    assert server.max_waiting == 4
    refused = [sample for sample in samples if sample.error_kind == "client_limit"]
    assert refused
    assert {sample.status for sample in refused} == {None}


async def replay(
    server: Server, path: str, arrivals: Sequence[Arrival], limits: Limits, **changes: int
) -> list[Sample]:
    target = Target(path=path, body={"query": "{query}"})
    load = ReplayLoad.model_validate({"kind": "replay", "trace": "given", **changes})
    async with listening(server.app) as url, Connections(url) as connections:
        client = RequestClient(connections, target, timeout_s=60.0)
        return await LoadGenerator(client, [target.encode("next")], limits, (7, 0, 0)).run(load, arrivals)


async def test_a_replay_sends_bodies_of_its_own_and_the_next_query_for_those_that_have_none() -> None:
    server = Server()
    samples = await replay(server, "/ok", [Arrival(0.0, b'{"query": "own"}'), Arrival(0.3)], Limits(1.0, 10))
    assert server.queries == ["own", "next"]
    assert [sample.intended_start_s for sample in samples] == [0.0, 0.3]


async def test_a_replays_latency_counts_from_the_recorded_time_through_a_stall() -> None:
    server = Server()
    samples = await replay(server, "/stall", [Arrival(number / 100) for number in range(30)], Limits(1.0, 100))
    assert len(samples) == 30
    assert all(sample.latency_s >= server.stall_s - sample.intended_start_s for sample in samples)


async def test_a_replay_ends_at_the_horizon_and_at_the_most_requests_allowed() -> None:
    arrivals = [Arrival(number / 10) for number in range(100)]
    assert len(await replay(Server(), "/ok", arrivals, Limits(0.35, 100))) == 4
    assert len(await replay(Server(), "/ok", arrivals, Limits(9.0, 3))) == 3


async def test_a_replay_counts_what_its_own_bound_kept_from_being_sent() -> None:
    server = Server()
    server.gate_opens_at, server.gate_delay_s = 2, 0.3
    samples = await replay(server, "/gate", [Arrival(0.0)] * 5, Limits(1.0, 10), max_in_flight=2)
    assert sorted(str(sample.error_kind) for sample in samples) == ["None", "None"] + ["client_limit"] * 3


@pytest.mark.parametrize(
    "load", [ClosedLoad(kind="closed", clients=4), OpenLoad(kind="open", rate_per_s=500)], ids=["closed", "open"]
)
async def test_a_load_that_is_stopped_starts_nothing_more_and_waits_for_what_it_started(load: SingleLoad) -> None:
    server = Server()
    server.gate_opens_at, server.gate_delay_s = 4, 0.2
    target = Target(path="/gate", body={"query": "{query}"})
    async with listening(server.app) as url, Connections(url) as connections:
        client = RequestClient(connections, target, timeout_s=60.0)
        generator = LoadGenerator(client, [target.encode("q")], Limits(60.0, 10**6), (7, 0, 0))
        running = asyncio.create_task(generator.run(load))
        await asyncio.wait_for(server.gate.wait(), timeout=60)
        generator.stop()
        started = len(generator.samples) + generator.num_in_flight
        samples = await asyncio.wait_for(running, timeout=60)
    assert len(samples) == started >= 4
    assert {sample.error_kind for sample in samples} == {None}
    assert generator.num_in_flight == 0


async def test_a_good_answer_gives_its_stage_timings_and_degraded_stages() -> None:
    sample = await send("/ok")
    assert (sample.status, sample.error_kind, sample.degraded) == (200, None, ("rerank",))
    assert [(timing.stage, timing.batch_size) for timing in sample.timings] == [("embed", 3)]
    assert sample.intended_start_s <= sample.start_s < sample.end_s


@pytest.mark.parametrize(("code", "kind"), [(404, "http_4xx"), (429, "shed"), (500, "http_5xx"), (504, "deadline")])
async def test_an_error_status_becomes_its_kind_with_the_servers_message(code: int, kind: str) -> None:
    sample = await send(f"/status/{code}")
    assert (sample.status, sample.error_kind, sample.error) == (code, kind, f"{code}: because {code}")


@pytest.mark.parametrize("path", ["/text", "/wrong"])
async def test_an_answer_that_is_not_what_it_should_be_is_malformed(path: str) -> None:
    assert (await send(path)).error_kind == "malformed"


async def test_a_request_past_its_timeout_is_given_up_and_its_connection_closed() -> None:
    server = Server()
    async with listening(server.app) as url, Connections(url) as connections:
        client = RequestClient(connections, Target(path="/never"), timeout_s=0.5)
        # A timeout may pass before the request has reached the server.
        while not server.num_waiting:
            sample = await client.send(b"{}", 0.0, time.perf_counter)
        await asyncio.wait_for(server.client_left.wait(), timeout=60)
    assert (sample.status, sample.error_kind) == (None, "timeout")


async def test_a_refused_connection_is_a_connection_error() -> None:
    async with Connections("http://127.0.0.1:1") as connections:
        sample = await RequestClient(connections, Target(path="/ok"), timeout_s=60.0).send(b"", 0.0, lambda: 0.0)
    assert (sample.status, sample.error_kind) == (None, "connection")
    assert sample.error


async def test_a_connection_that_breaks_within_the_answer_is_a_connection_error() -> None:
    sample = await send("/broken")
    assert (sample.status, sample.error_kind) == (200, "connection")


async def test_a_stream_gives_the_time_to_the_first_token_and_between_tokens() -> None:
    sample = await send("/stream", stream=True)
    assert (sample.status, sample.error_kind) == (200, None)
    assert sample.ttft_s is not None
    assert 0 < sample.ttft_s < sample.latency_s
    assert len(sample.inter_token_s) == 2
    assert sample.ttft_s + sum(sample.inter_token_s) <= sample.latency_s
    assert [timing.stage for timing in sample.timings] == ["embed"]


@pytest.mark.parametrize(("end", "message"), [("error", "engine died"), ("nothing", "without a `done`")])
async def test_a_stream_that_fails_or_just_ends_is_a_stream_error(end: str, message: str) -> None:
    sample = await send(f"/stream/{end}", stream=True)
    assert (sample.status, sample.error_kind) == (200, "stream")
    assert message in sample.error


async def test_a_refused_stream_is_the_error_of_its_status() -> None:
    assert (await send("/status/429", stream=True)).error_kind == "shed"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost:8000", True),
        ("http://[::1]:8000", True),
        ("http://127.0.0.1.example.org", False),
        ("http://192.168.0.7:8000", False),
        ("https://example.org", False),
    ],
)
def test_only_this_machine_is_loopback(url: str, expected: bool) -> None:
    assert is_loopback(url) is expected


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert (await send("/ok")).status == 200


async def test_a_connection_is_used_again_unless_its_request_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.connections.KEEPALIVE_EXPIRY_S", 60.0)
    server = Server()
    async with listening(server.app) as url, Connections(url) as connections:
        for path in ("/ok", "/ok", "/broken", "/ok"):
            await RequestClient(connections, Target(path=path), timeout_s=60.0).send(
                b'{"query": "q"}', 0.0, time.perf_counter
            )
    first, second, third = server.client_ports
    assert first == second
    assert third != second


class Drained(RequestClient):
    """Answers after a second; whoever asks from the eleventh second on waits for half a minute."""

    def __init__(self) -> None:
        pass

    async def send(self, body: bytes, intended_start_s: float, now_s: Callable[[], float]) -> Sample:
        start_s = now_s()
        await asyncio.sleep(1.0 if start_s < 10.5 else 30.0)
        return Sample(intended_start_s, start_s, now_s())


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "load", [ClosedLoad(kind="closed", clients=2), OpenLoad(kind="open", rate_per_s=2, arrivals="constant")]
)
@pytest.mark.parametrize("stop_at_s", [None, 11.5])
async def test_the_cpu_share_is_that_of_the_time_in_which_requests_are_sent(
    load: SingleLoad, stop_at_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(time, "perf_counter", loop.time)
    monkeypatch.setattr(time, "process_time", lambda: 0.9 * min(loop.time(), stop_at_s or 12.0))
    generator = LoadGenerator(Drained(), [b"{}"], Limits(12.0, 1000), [1])
    if stop_at_s is not None:
        loop.call_later(stop_at_s, generator.stop)
    samples = await generator.run(load)
    assert max(sample.end_s for sample in samples) > 40
    assert generator.client_cpu_share == pytest.approx(0.9)


@pytest.mark.virtual_time
async def test_the_cpu_share_of_a_load_that_is_answered_early_ends_with_its_last_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(time, "perf_counter", loop.time)
    monkeypatch.setattr(time, "process_time", lambda: 0.5 * loop.time())
    generator = LoadGenerator(Drained(), [b"{}"], Limits(60.0, 3), [1])
    await generator.run(ClosedLoad(kind="closed", clients=1))
    assert loop.time() == pytest.approx(3.0)
    assert generator.client_cpu_share == pytest.approx(0.5)
