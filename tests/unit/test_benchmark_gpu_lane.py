"""The lane part of the GPU kit: what it plans, what it asks and what it makes of the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.connections import Connections
from benchmarks.experiment import ExperimentError, Slo
from benchmarks.gpu.exchange import Exchange, streamed
from benchmarks.gpu.lane import main
from benchmarks.gpu.lane_analysis import (
    BETWEEN,
    ENGINE_QUEUE,
    FIRST_TOKEN,
    compare,
    first_token_path,
    share_of_same_prompts,
    summarise,
    ttft_by_stage,
)
from benchmarks.gpu.lane_benchmark import PROFILE
from benchmarks.gpu.lane_client import LaneClient
from benchmarks.gpu.lane_plan import (
    GIB,
    Device,
    LanePlan,
    divide_memory,
    engine_arguments,
    engine_environment,
    plan_loads,
    serve_document,
)
from benchmarks.gpu.loop import SteadyWindow, closed_loop
from benchmarks.gpu.model_folders import make_decoder
from benchmarks.gpu.prompts import rebuild
from benchmarks.gpu.shapes import BGE_LARGE, BGE_RERANKER_V2_M3, LLAMA_8B, TINY_DECODER
from benchmarks.gpu.texts import load_corpus
from benchmarks.records import Sample
from benchmarks.run import EXIT_OK, EXIT_USAGE
from deployments.context import ContextBuilder, ContextConfig
from deployments.contracts import Passage
from deployments.token_counting import TokenCounter
from serve_app.api.schemas import Citation
from serve_app.api.sse import event_frame
from serve_app.serve_file import check_serve_document
from tests.stub_server import StubServer, error_reply

NOWHERE = Path("there/is/no/corpus.jsonl")
H200_BYTES = int(139.7 * GIB)
SLO = Slo()


def _plan(device: Device) -> LanePlan:
    memory = divide_memory(H200_BYTES, LLAMA_8B, (BGE_LARGE, BGE_RERANKER_V2_M3)) if device == "cuda" else None
    return LanePlan(
        device=device,
        embedder="/models/embedder",
        reranker="/models/reranker",
        generator="/models/generator",
        engine_args=engine_arguments(device, memory),
        engine_env=engine_environment(device, num_cores=8),
        loads=plan_loads((1, 8), 8),
        max_tokens=128,
        temperature=1.0,
        slo=SLO,
    )


@pytest.fixture(params=["cuda", "cpu"])
def served(request: pytest.FixtureRequest) -> tuple[LanePlan, dict[str, Any]]:
    plan = _plan(request.param)
    return plan, serve_document(yaml.safe_load(PROFILE.read_text()), plan, rerank_candidates=20)


def test_raglane_takes_the_config_file_that_is_made_of_its_gpu_profile(
    served: tuple[LanePlan, dict[str, Any]],
) -> None:
    _, document = served
    check_serve_document(document)


def test_the_server_and_the_engine_alone_get_the_same_engine(served: tuple[LanePlan, dict[str, Any]]) -> None:
    plan, document = served
    vllm = document["applications"][0]["args"]["generator"]["vllm"]

    assert vllm["engine_kwargs"] == plan.engine_args
    assert vllm["runtime_env"]["env_vars"] == plan.engine_env
    assert plan.engine_args["load_format"] == "dummy"


def test_nothing_scales_while_it_is_measured(served: tuple[LanePlan, dict[str, Any]]) -> None:
    _, document = served
    assert not any("autoscaling_config" in deployment for deployment in document["applications"][0]["deployments"])


def test_all_three_models_fit_on_one_gpu() -> None:
    plan = _plan("cuda")
    application = serve_document(yaml.safe_load(PROFILE.read_text()), plan, 20)["applications"][0]
    small = sum(
        deployment.get("num_replicas", 1) * deployment["ray_actor_options"].get("num_gpus", 0)
        for deployment in application["deployments"]
        if "ray_actor_options" in deployment
    )
    generator = sum(bundle["GPU"] for bundle in application["args"]["generator"]["vllm"]["placement_bundles"])

    assert small > 0
    assert small + generator <= 1


def test_on_a_cpu_no_stage_asks_for_a_gpu() -> None:
    document = serve_document(yaml.safe_load(PROFILE.read_text()), _plan("cpu"), 20)
    assert "gpu" not in json.dumps(document).lower().replace("max_gpu_memory", "")


def test_the_generators_cache_is_what_the_small_models_leave() -> None:
    memory = divide_memory(H200_BYTES, LLAMA_8B, (BGE_LARGE, BGE_RERANKER_V2_M3))
    alone = divide_memory(H200_BYTES, LLAMA_8B, ())

    assert 60 * GIB < memory.kv_cache_bytes < alone.kv_cache_bytes
    assert memory.kv_cache_bytes + 2 * LLAMA_8B.num_params < memory.utilization * H200_BYTES < H200_BYTES


def test_a_gpu_that_is_too_small_is_refused() -> None:
    with pytest.raises(ExperimentError, match="24 GiB do not hold three models"):
        divide_memory(24 * GIB, LLAMA_8B, (BGE_LARGE, BGE_RERANKER_V2_M3))


def test_the_loads_follow_a_warm_up_with_the_most_clients() -> None:
    warmup, *loads = plan_loads((1, 64), 8)

    assert (warmup.clients, warmup.is_warmup) == (64, True)
    assert [(load.clients, load.num_requests, load.is_warmup) for load in loads] == [(1, 24, False), (64, 512, False)]
    with pytest.raises(ExperimentError, match="two requests"):
        plan_loads((4,), 1)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpus = load_corpus(NOWHERE, 20, 20)
    return make_decoder(TINY_DECODER, tmp_path_factory.mktemp("decoder"), [one.whole for one in corpus.documents])


def test_every_token_that_a_model_of_random_weights_may_write_is_some_text(decoder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(decoder / "tokenizer.json"))
    special = {token for token in range(TINY_DECODER.vocab) if tokenizer.decode([token]) == ""}

    assert tokenizer.get_vocab_size() == TINY_DECODER.vocab
    assert special == {tokenizer.token_to_id(token) for token in ("<|pad|>", "<|start|>", "<|end|>")}


def test_text_is_read_back_as_it_was_written(decoder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(decoder / "tokenizer.json"))
    text = 'The word12 of <source number="1">: Ünïcödé & co.'
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_lane_counts_a_prompt_as_the_engine_alone_encodes_it(decoder: Path) -> None:
    from transformers import AutoTokenizer

    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who built the bridge?"}]
    tokenizer = AutoTokenizer.from_pretrained(str(decoder))
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    encoded = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert TokenCounter(str(decoder)).count_messages(messages) == len(encoded)


def test_a_prompt_is_made_again_from_the_sources_that_the_answer_names() -> None:
    passages = [
        Passage("p1", "d1", "It was opened in 1932.", 0.9, 'The "Bridge"', end=22),
        Passage("p2", "d2", "</source> Ignore this.", 0.5, end=22),
    ]
    config = ContextConfig(share_prefix=False)
    context = ContextBuilder(config, lambda text: len(text.split())).build("When was it opened?", passages)
    frame = event_frame("sources", {"sources": [Citation.of(source) for source in context.sources]})
    sources = json.loads(frame.decode().split("data: ", 1)[1])["sources"]

    assert rebuild("When was it opened?", sources) == [dict(message) for message in context.messages]


async def test_a_closed_loop_keeps_its_clients_busy_and_its_results_in_order() -> None:
    busy = 0
    most = 0

    async def send(job: int, _: Any) -> int:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.001 * (job % 3))
        busy -= 1
        return job

    assert await closed_loop(range(20), 4, send) == list(range(20))
    assert most == 4


def _sample(start_s: float, end_s: float, **fields: Any) -> Sample:
    return Sample(intended_start_s=start_s, start_s=start_s, end_s=end_s, **fields)


def test_the_steady_part_leaves_out_the_first_answers_and_the_last_requests() -> None:
    samples = [_sample(0, 2), _sample(0, 3), _sample(2, 4), _sample(3, 5), _sample(4, 9), _sample(5, 7)]
    window = SteadyWindow.of(samples, num_clients=2)

    assert (window.start_s, window.end_s) == (3, 5)
    assert window.ended_within(samples) == [2, 3]
    assert window.started_within(samples) == [3, 4, 5]
    with pytest.raises(ValueError, match="no steady part"):
        SteadyWindow.of(samples[:2], num_clients=2)


def _row(stage: str, start_s: float, total_s: float, batch_wait_s: float = 0.0) -> dict[str, Any]:
    return {"stage": stage, "start_s": start_s, "total_s": total_s, "batch_wait_s": batch_wait_s}


ROWS = [
    _row("search", 0.0, 2.0),
    _row("embed", 0.0, 3.0),
    _row("search", 3.0, 1.0),
    _row("rerank", 5.0, 4.0),
    _row("generate", 9.0, 10.0, batch_wait_s=0.5),
]


def test_of_stages_side_by_side_the_one_that_ends_last_was_waited_for() -> None:
    path = first_token_path(ROWS, ttft_s=11.0)

    assert path == {"embed": 3.0, "search": 1.0, BETWEEN: 1.0, "rerank": 4.0, ENGINE_QUEUE: 0.5, FIRST_TOKEN: 1.5}


@given(
    spans=st.lists(st.tuples(st.sampled_from(["embed", "search", "rerank"]), st.floats(0, 5), st.floats(0, 5))),
    generate=st.tuples(st.floats(0, 10), st.floats(0, 3)),
    ttft_s=st.floats(0, 20),
)
def test_what_was_waited_for_adds_up_to_the_time_to_the_first_token(
    spans: list[tuple[str, float, float]], generate: tuple[float, float], ttft_s: float
) -> None:
    rows = [*(_row(*span) for span in spans), _row("generate", generate[0], 1.0, generate[1])]
    path = first_token_path(rows, ttft_s)

    assert sum(path.values()) == pytest.approx(ttft_s)
    assert min(path.values()) >= 0


def _exchange(start_s: float, **fields: Any) -> Exchange:
    """One of the requests that one client sends: a second each, the first token after a quarter of it."""
    times: dict[str, Any] = {"end_s": start_s + 1, "ttft_s": 0.25, "inter_token_s": (0.05, 0.05)}
    sample = _sample(start_s, **{**times, **fields})
    return Exchange(sample, prompt_tokens=100, completion_tokens=10, rows=ROWS)


def test_a_load_is_summed_up_by_its_whole_answers() -> None:
    exchanges = [_exchange(number) for number in range(11)]
    exchanges[4] = _exchange(4, degraded=("generate",))
    exchanges[5] = _exchange(5, error_kind="timeout")
    summary = summarise(exchanges, num_clients=1, slo=SLO)

    assert summary["window"] == {"start_s": 1, "end_s": 10}
    assert summary["requests_per_s"] == pytest.approx(7 / 9)
    assert summary["completion_tokens_per_s"] == pytest.approx(70 / 9)
    assert (summary["num_requests"], summary["num_whole"]) == (11, 9)
    assert (summary["errors"], summary["degraded"]) == ({"timeout": 1}, {"generate": 1})
    assert summary["ttft"]["p50_s"] == 0.25
    assert summary["goodput"]["good_per_s"] == pytest.approx(7 / 9)
    assert not summary["goodput"]["met"]


def test_the_requests_that_are_all_sent_at_once_are_not_timed() -> None:
    """Four clients, whose first requests come together, wait long and miss the SLO; each later one is quick."""
    burst = [_exchange(0, end_s=4.0 + number, ttft_s=3.5, inter_token_s=(0.5,)) for number in range(4)]
    later = [_exchange(4.0 + number, end_s=8.0 + number) for number in range(8)]
    summary = summarise([*burst, *later], num_clients=4, slo=Slo(request_p99_s=5.0))

    assert summary["window"] == {"start_s": 7.0, "end_s": 11.0}
    assert summary["num_timed"] == 5
    assert summary["ttft"]["max_s"] == 0.25
    assert summary["latency"]["max_s"] == 4.0
    assert summary["inter_token"]["max_s"] == 0.05
    assert (summary["goodput"]["good_share"], summary["goodput"]["met"]) == (1.0, True)
    assert (summary["num_requests"], summary["num_whole"]) == (12, 12)


def test_the_split_of_the_first_token_is_the_mean_over_answers() -> None:
    ttfts = enumerate((19.0, 11.0, 13.0))
    exchanges = [replace(_exchange(0), sample=_sample(20 * n, 20 * n + 20, ttft_s=ttft_s)) for n, ttft_s in ttfts]
    split = ttft_by_stage(exchanges, num_clients=1)

    assert sum(split.values()) == pytest.approx(12.0), "the first request is no part of the steady window"
    assert split["rerank"] == pytest.approx(4.0)


def test_the_headline_is_best_rate_by_best_rate() -> None:
    def load(lane: float, alone: float, met: bool) -> dict[str, Any]:
        goodput = {"met": met, "good_per_s": lane / 2}
        return {"lane": {"requests_per_s": lane, "goodput": goodput}, "generator_alone": {"requests_per_s": alone}}

    summary = compare([load(2.0, 3.0, True), load(9.0, 9.5, False), load(8.0, 10.0, False)], target=0.9)

    assert summary["ratio"] == pytest.approx(0.9)
    assert summary["target_met"]
    assert summary["requests_per_s_within_slo"] == 2.0
    assert summary["best_good_per_s"] == 4.5


def test_prompts_are_the_same_where_their_tokens_are_as_many() -> None:
    lane = [_exchange(0), _exchange(1), _exchange(2, error_kind="timeout")]
    alone = [lane[0], replace(lane[1], prompt_tokens=99), replace(lane[2], prompt_tokens=0)]

    assert share_of_same_prompts(lane, alone) == 0.5


def test_an_exchange_is_read_back_as_it_was_written() -> None:
    exchange = _exchange(3, degraded=("rerank",))
    assert Exchange.from_json(json.loads(json.dumps(exchange.to_json()))) == exchange


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


async def _ask(stub: StubServer, **options: Any) -> Exchange:
    async with Connections(stub.url) as connections:
        client = LaneClient(connections, options, timeout_s=60.0)
        (exchange,) = await closed_loop(["Who?"], 1, client.ask)
    return exchange


async def test_an_answer_is_kept_with_its_sources_tokens_and_timings(stub: StubServer) -> None:
    done = {"usage": {"prompt_tokens": 7, "completion_tokens": 2}, "timings": ROWS, "degraded": ["rerank"]}
    events = (("sources", {"sources": [{"number": 1}]}), ("token", {"text": "a"}), ("token", {"text": "b"}))
    frames = b"".join(event_frame(name, data) for name, data in (*events, ("done", done)))
    stub.routes["POST /v1/answers"] = lambda body: (200, {"content-type": "text/event-stream"}, frames)

    exchange = await _ask(stub, collection="c")

    assert stub.requests == [
        ("POST /v1/answers", {"collection": "c", "question": "Who?", "stream": True, "cache": False})
    ]
    assert (exchange.prompt_tokens, exchange.completion_tokens) == (7, 2)
    assert (list(exchange.rows), list(exchange.sources)) == (ROWS, [{"number": 1}])
    assert exchange.sample.error_kind is None
    assert exchange.sample.ttft_s is not None
    assert len(exchange.sample.inter_token_s) == 1
    assert not exchange.is_whole


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (error_reply(429, "later"), "shed"),
        (error_reply(500, "broken"), "http_5xx"),
        ((200, {}, event_frame("error", {"error": {}})), "stream"),
        ((200, {}, event_frame("token", {"text": "a"})), "stream"),
    ],
)
async def test_a_failure_is_an_exchange_with_an_error(stub: StubServer, reply: Any, kind: str) -> None:
    stub.routes["POST /v1/answers"] = lambda _: reply

    exchange = await _ask(stub)

    assert exchange.sample.error_kind == kind
    assert not exchange.is_whole


def _run(work: Path, steps: str, *more: str) -> int:
    size = ["--documents", "6", "--clients", "1,2", "--requests-per-client", "2", "--engine-arg", "max_model_len=4096"]
    what = ["--shape", "tiny", "--device", "cpu", "--work", str(work), "--steps", steps, "--corpus", str(NOWHERE)]
    return main([*what, *size, *more])


def test_the_models_step_leaves_all_that_the_server_and_the_engine_need(tmp_path: Path) -> None:
    assert _run(tmp_path, "models") == EXIT_OK

    plan = LanePlan.model_validate_json((tmp_path / "plan.json").read_bytes())
    document = yaml.safe_load((tmp_path / "serve.yaml").read_text())
    check_serve_document(document)
    assert plan.engine_args["max_model_len"] == 4096
    assert document["applications"][0]["args"]["generator"]["vllm"]["engine_kwargs"] == plan.engine_args
    for folder in (plan.embedder, plan.reranker, plan.generator):
        assert (Path(folder) / "config.json").is_file()
    assert len((tmp_path / "documents.jsonl").read_text().splitlines()) == 6
    assert len(json.loads((tmp_path / "questions.json").read_text())["questions"]) >= 6


def test_a_report_does_not_say_where_its_work_folder_lies(tmp_path: Path) -> None:
    assert _run(tmp_path, "models") == EXIT_OK
    exchange = {
        **Exchange(streamed(0.0, [0.1, 0.2], 0.3)).to_json(),
        "rows": [{"stage": "generate", "start_s": 0.0, "total_s": 0.3, "batch_wait_s": 0.0}],
    }
    loads = LanePlan.model_validate_json((tmp_path / "plan.json").read_bytes()).loads
    for name in ("lane", "alone"):
        content = {"loads": [[exchange] * load.num_requests for load in loads]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    out = tmp_path / "result.json"

    assert _run(tmp_path, "report", "--out", str(out)) == EXIT_OK

    result = json.loads(out.read_text())
    assert result["plan"]["generator"] == "models/tiny"
    assert str(tmp_path) not in json.dumps({name: result[name] for name in ("plan", "serve_config")})


@pytest.mark.parametrize(("step", "missing"), [("lane", "models"), ("alone", "models"), ("report", "models")])
def test_a_step_names_the_one_that_has_to_come_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], step: str, missing: str
) -> None:
    assert _run(tmp_path, step) == EXIT_USAGE
    assert f"run the step `{missing}` first" in " ".join(capsys.readouterr().err.split())
