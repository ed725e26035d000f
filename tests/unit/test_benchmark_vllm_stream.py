"""Streamed generation against the bare engine: what both are asked, whose turn it is, and how they compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.experiment import ExperimentError
from benchmarks.gpu.exchange import Exchange, streamed
from benchmarks.gpu.lane_plan import GenerationPlan, PlannedLoad
from benchmarks.gpu.loop import SteadyWindow, closed_loop
from benchmarks.gpu.stage_client import StageClient
from benchmarks.run import EXIT_USAGE
from benchmarks.streaming.comparison import Target, compare, take_turns, targets, tokens_per_s
from benchmarks.streaming.contenders import Turn, serve_document
from benchmarks.streaming.inputs import StreamInputs, StreamOptions, make_inputs
from benchmarks.vllm_stream import main, print_result
from deployments.errors import EngineFailed
from serve_app.serve_file import check_serve_document, custom_resources
from tests.fakes import FakeGenerator, Faults

NOWHERE = Path("there/is/no/corpus.jsonl")
OPTIONS = StreamOptions(
    clients=(1, 4),
    requests_per_client=3,
    min_requests=6,
    max_tokens=8,
    num_sources=3,
    source_words=60,
    engine_args={"max_num_seqs": 16},
    corpus=NOWHERE,
    seed=0,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def inputs(folder: Path) -> StreamInputs:
    return make_inputs(OPTIONS, folder)


def test_every_request_of_every_load_has_a_prompt_of_its_own(inputs: StreamInputs) -> None:
    num_requests = [load.num_requests for load in inputs.plan.loads]
    prompts = [json.dumps(messages) for load in inputs.prompts for messages in load]

    assert num_requests == [8, 6, 12]
    assert [len(load) for load in inputs.prompts] == num_requests
    assert len(set(prompts)) == len(prompts)


def test_prompts_are_those_of_rag(inputs: StreamInputs, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    first = list(inputs.prompts[0][0])
    text = tokenizer.apply_chat_template(first, add_generation_prompt=True, tokenize=False)
    num_tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert [message["role"] for message in first] == ["system", "user"]
    assert first[1]["content"].count("<source ") == OPTIONS.num_sources
    assert 200 < num_tokens < 1000


def test_no_token_ends_an_answer_before_it_is_as_long_as_asked(inputs: StreamInputs, folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    assert AutoTokenizer.from_pretrained(str(folder)).eos_token_id is None
    assert AutoConfig.from_pretrained(str(folder)).eos_token_id is None
    assert GenerationConfig.from_pretrained(str(folder)).eos_token_id is None


def test_nearly_every_token_of_an_answer_is_text(inputs: StreamInputs, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    prompt = tokenizer.apply_chat_template(list(inputs.prompts[0][0]), add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=64, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
    pieces = [tokenizer.decode([token], skip_special_tokens=True) for token in answer]

    assert len(answer) == 64
    assert sum(piece not in ("", "\N{REPLACEMENT CHARACTER}") for piece in pieces) > 48


def test_a_prompt_that_comes_again_is_not_found_in_a_cache(inputs: StreamInputs) -> None:
    assert inputs.plan.engine_args["enable_prefix_caching"] is False
    assert inputs.plan.temperature == 0


def test_what_is_given_for_the_engine_goes_to_both_sides(inputs: StreamInputs) -> None:
    from benchmarks.gpu.generate_stage import vllm_config

    config = vllm_config(inputs.plan)
    assert inputs.plan.engine_args["max_num_seqs"] == 16
    assert config.engine_kwargs == inputs.plan.engine_args
    assert config.runtime_env["env_vars"] == inputs.plan.engine_env
    assert {"OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"} <= inputs.plan.engine_env.keys()


def test_raglane_takes_the_config_file_of_its_side(inputs: StreamInputs) -> None:
    document = serve_document(inputs.plan, port=8123)
    check_serve_document(document)

    assert custom_resources(document) == set()
    assert document["http_options"] == {"host": "127.0.0.1", "port": 8123}
    assert GenerationPlan.model_validate(document["applications"][0]["args"]["plan"]) == inputs.plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": (1, 5000)}, "clients can ask at a time"),
        ({"requests_per_client": 2}, "three requests"),
        ({"max_tokens": 1}, "two tokens"),
    ],
)
def test_what_can_not_be_measured_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        replace(OPTIONS, **change)


MESSAGES = [{"role": "user", "content": "Who built the bridge?"}]


async def test_the_stage_is_asked_for_the_plans_answer_and_timed_piece_by_piece() -> None:
    stage = FakeGenerator()
    (exchange,) = await closed_loop([MESSAGES], 1, StageClient(stage, max_tokens=3, temperature=0.0).generate)

    (request,) = stage.requests
    assert (request.messages, request.options.max_tokens, request.options.temperature) == (tuple(MESSAGES), 3, 0.0)
    assert exchange.completion_tokens == 3
    assert exchange.prompt_tokens > 0
    assert exchange.sample.ttft_s is not None
    assert len(exchange.sample.inter_token_s) == 2
    assert exchange.sample.error_kind is None


async def test_a_stage_that_fails_leaves_an_error_in_the_sample() -> None:
    stage = FakeGenerator(faults=Faults(error=EngineFailed("it broke")), fail_after=1)
    (exchange,) = await closed_loop([MESSAGES], 1, StageClient(stage, max_tokens=3, temperature=0.0).generate)

    assert (exchange.sample.error_kind, exchange.sample.error) == ("stream", "it broke")
    assert not exchange.is_whole


PLAN = GenerationPlan(
    generator="/models/generator",
    engine_args={},
    engine_env={},
    loads=(
        PlannedLoad(clients=2, num_requests=4, is_warmup=True),
        PlannedLoad(clients=1, num_requests=6),
        PlannedLoad(clients=32, num_requests=128),
    ),
    max_tokens=5,
    temperature=0.0,
)


def _answers(num_requests: int, clients: int, ttft_s: float, gap_s: float) -> list[Exchange]:
    """A closed loop in which all clients go in step and every answer has five pieces."""
    answers: list[Exchange] = []
    start_s = 0.0
    while len(answers) < num_requests:
        pieces_s = [start_s + ttft_s + piece * gap_s for piece in range(5)]
        # An answer ends after its last piece, if only just.
        end_s = pieces_s[-1] + 1e-9
        answers += [Exchange(streamed(start_s, pieces_s, end_s), 100, 5)] * clients
        start_s = end_s
    return answers[:num_requests]


def _turn(ttft_s: float, gap_s: float) -> Turn:
    return [_answers(load.num_requests, load.clients, ttft_s, gap_s) for load in PLAN.loads]


def test_turns_are_taken_a_b_b_a() -> None:
    notes: list[str] = []
    sides = {"a": lambda: _turn(0.1, 0.1), "b": lambda: _turn(0.2, 0.1)}
    turns = take_turns(sides, PLAN, 3, notes.append)

    assert [note.rpartition(" ")[2] for note in notes] == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(own) for name, own in turns.items()} == {"a": 3, "b": 3}


def _spoilt(exchange: Exchange) -> Turn:
    turn = _turn(0.1, 0.1)
    turn[2][7] = exchange
    return turn


@pytest.mark.parametrize(
    ("exchange", "message"),
    [
        (Exchange(streamed(0.0, [], 1.0, "stream", "it broke"), 100, 0), "a, 32 clients: a request failed: it broke"),
        (Exchange(streamed(0.0, [0.5], 1.0), 100, 4), "an answer has 4 tokens, 5 were asked for"),
    ],
)
def test_an_answer_that_is_not_whole_ends_the_comparison(exchange: Exchange, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        take_turns({"a": lambda: _spoilt(exchange), "b": lambda: _turn(0.1, 0.1)}, PLAN, 1)


def _compared(first: Sequence[Turn], other: Sequence[Turn]) -> list[dict[str, Any]]:
    return compare({"raglane": first, "bare": other}, PLAN)


def test_medians_over_the_rounds_are_compared_for_every_load_but_the_warm_up() -> None:
    rounds = [0.020, 0.024, 0.100]
    one, many = _compared([_turn(ttft_s, 0.002) for ttft_s in rounds], [_turn(0.016, 0.001)] * 3)

    assert (one["clients"], many["clients"]) == (1, 32)
    assert one["systems"]["raglane"]["ttft_p50_s"] == {
        "median": pytest.approx(0.024),
        "rounds": [pytest.approx(ttft_s) for ttft_s in rounds],
    }
    ratio = one["first_to_other"]["ttft_p50_s"]
    assert ratio == {
        "of_medians": pytest.approx(1.5),
        "least": pytest.approx(1.25),
        "greatest": pytest.approx(6.25),
    }
    assert one["ttft_p50_added_s"] == pytest.approx(0.008)
    assert one["first_to_other"]["itl_p50_s"]["of_medians"] == pytest.approx(2.0)


def test_tokens_per_second_are_those_of_all_clients_together() -> None:
    one, many = _compared([_turn(0.6, 0.1)], [_turn(0.1, 0.1)])

    assert one["systems"]["raglane"]["tokens_per_s"]["median"] == pytest.approx(5.0)
    assert one["systems"]["bare"]["tokens_per_s"]["median"] == pytest.approx(10.0)
    assert many["systems"]["bare"]["tokens_per_s"]["median"] == pytest.approx(320.0)
    assert one["first_to_other"]["tokens_per_s"]["of_medians"] == pytest.approx(0.5)


def test_the_requests_that_are_all_sent_at_once_are_not_timed() -> None:
    turn = _turn(0.1, 0.1)
    for load, exchanges in zip(PLAN.loads, turn, strict=True):
        slow = Exchange(streamed(0.0, [0.45], exchanges[0].sample.end_s), 100, 5)
        exchanges[: load.clients] = [slow] * load.clients
    for compared in _compared([turn], [_turn(0.1, 0.1)]):
        assert compared["systems"]["raglane"]["ttft_p99_s"]["median"] == pytest.approx(0.1)
        assert compared["figures"]["raglane"][0]["mean_pieces"] == 5


def test_tokens_count_when_they_come_not_when_their_answer_ends() -> None:
    exchanges = [
        Exchange(streamed(0.0, [0.5, 1.0, 1.5, 2.0], 2.0), 100, 4),
        # Two tokens in each piece.
        Exchange(streamed(0.0, [2.5, 5.0], 5.0), 100, 4),
    ]
    assert tokens_per_s(exchanges, SteadyWindow(1.0, 3.0)) == pytest.approx((2 + 2) / 2)
    assert tokens_per_s(exchanges, SteadyWindow(1.0, 1.0)) == 0


def test_prompts_of_another_length_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    other = _turn(0.1, 0.1)
    other[1][0] = replace(other[1][0], prompt_tokens=99)
    loads = _compared([_turn(0.1, 0.1)], [other])
    print_result(Console(stderr=True, width=160), {"loads": loads, "targets": []})

    assert loads[0]["same_prompts"] == pytest.approx(5 / 6)
    assert "1 clients: only 83.3% of the prompts were as long" in capsys.readouterr().err


def test_what_was_hoped_for_is_the_rate_of_every_load_and_the_first_token_of_two() -> None:
    found = targets(_compared([_turn(0.110, 0.1)], [_turn(0.102, 0.1)]))
    hoped = {(target.clients, target.what): target.met for target in found}

    assert hoped == {
        (1, "tokens/s, ratio"): True,
        (1, "TTFT p50, seconds added"): False,
        (32, "tokens/s, ratio"): True,
        (32, "TTFT p50, ratio"): True,
    }


@pytest.mark.parametrize(
    ("kind", "value", "met"),
    [("at least", 0.95, True), ("at least", 0.94, False), ("at most", 0.95, True), ("at most", 0.96, False)],
)
def test_a_target_is_met_at_its_bound(kind: Any, value: float, met: bool) -> None:
    assert Target("something", 1, kind, 0.95, value).met is met


def test_the_table_shows_both_sides_and_the_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    loads = _compared([_turn(0.020, 0.002)], [_turn(0.010, 0.001)])
    result = {"loads": loads, "targets": [target.to_json() for target in targets(loads)]}
    print_result(Console(stderr=True, width=160), result)
    shown = capsys.readouterr().err

    assert "32 clients, 128 prompts of 100 tokens" in shown
    assert "TTFT p50 ms" in shown
    assert "2.000 (2.000 … 2.000)" in shown
    assert "1 clients, TTFT p50, seconds added: 0.01 (at most 0.005: missed)" in shown


@pytest.mark.parametrize("arguments", [["--clients", "0"], ["--rounds", "x"], ["--engine-arg", "enforce_eager"]])
def test_arguments_that_make_no_sense_are_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == EXIT_USAGE


def test_a_comparison_that_can_not_be_made_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    assert main(["--requests-per-client", "2", "--corpus", str(NOWHERE), "--out", str(out)]) == EXIT_USAGE
    assert "three requests" in capsys.readouterr().err
    assert not out.exists()
