"""The vLLM generator without vLLM: its wire format, its errors, its configuration and its token counts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.contracts import GenerateRequest, GenerationOptions, Usage
from deployments.errors import ConfigError, EngineFailed, InputTooLong, InvalidInput, Overloaded, StageError
from deployments.prompts import Messages
from deployments.token_counting import CONVERSATION_OVERHEAD_TOKENS, MESSAGE_OVERHEAD_TOKENS, TokenCounter
from deployments.vllm_generator import ONE_PROCESS, VllmConfig, build_token_counter, to_llm_fields
from deployments.vllm_protocol import (
    fold_system,
    parse_events,
    to_chat_fields,
    to_finish_reason,
    to_stage_error,
    too_long,
)
from tests.tiny_llm import (
    CHAT_TEMPLATE,
    END_OF_TURN,
    REFUSING_SYSTEM,
    START_OF_TURN,
    make_tiny_llm,
    train_tokenizer,
)

MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who built the bridge?"})


def _event(**fields: Any) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def _content(text: str | None, finish_reason: str | None = None) -> str:
    return _event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}])


class TestWireFormat:
    def test_events_keep_their_order_and_their_text(self) -> None:
        chunks = parse_events(_content("") + _content("two\n\nlines ") + _content("data: [DONE]", "stop"))

        assert [chunk.text for chunk in chunks] == ["", "two\n\nlines ", "data: [DONE]"]
        assert [chunk.finish_reason for chunk in chunks] == [None, None, "stop"]

    def test_the_usage_event_has_no_choice_and_carries_the_queueing_time_in_milliseconds(self) -> None:
        usage = {"prompt_tokens": 16, "completion_tokens": 20, "total_tokens": 36}
        (chunk,) = parse_events(_event(choices=[], usage=usage, metrics={"queue_time_ms": 250.0}))

        assert chunk.usage == Usage(prompt_tokens=16, completion_tokens=20)
        assert chunk.queue_s == pytest.approx(0.25)

    def test_a_delta_without_content_is_empty_text(self) -> None:
        reasoning = _event(choices=[{"index": 0, "delta": {"reasoning": "hm"}, "finish_reason": None}])

        assert [chunk.text for chunk in parse_events(reasoning + _content(None))] == ["", ""]

    def test_comments_and_the_end_mark_are_no_events(self) -> None:
        assert parse_events(": keep-alive\n\ndata: [DONE]\n\n") == []

    def test_an_error_event_carries_the_error(self) -> None:
        (chunk,) = parse_events(_event(error={"message": "boom", "code": 500}))

        assert chunk.error == {"message": "boom", "code": 500}

    def test_options_left_open_stay_out_of_the_request(self) -> None:
        fields = to_chat_fields(GenerateRequest("q", (), MESSAGES), "tiny")

        assert fields.keys() == {"model", "messages", "stream", "stream_options"}
        assert fields["messages"] == list(MESSAGES)

    def test_a_zero_temperature_and_a_zero_seed_are_not_left_open(self) -> None:
        options = GenerationOptions(max_tokens=9, temperature=0.0, top_p=0.5, stop=("\n",), seed=0)
        fields = to_chat_fields(GenerateRequest("q", (), MESSAGES, options, request_id="r-1"), "tiny")

        assert fields["temperature"] == 0.0
        assert fields["seed"] == 0
        assert (fields["max_completion_tokens"], fields["top_p"], fields["stop"]) == (9, 0.5, ["\n"])
        assert fields["request_id"] == "r-1"

    def test_a_folded_system_message_begins_the_user_s(self) -> None:
        assert fold_system(MESSAGES) == ({"role": "user", "content": "Be brief.\n\nWho built the bridge?"},)
        later = ({"role": "assistant", "content": "Nobody."}, {"role": "user", "content": "When?"})
        assert fold_system((*MESSAGES, *later))[1:] == later

    @pytest.mark.parametrize("messages", [MESSAGES[1:], MESSAGES[:1]])
    def test_without_a_system_message_before_another_there_is_nothing_to_fold(self, messages: Messages) -> None:
        assert fold_system(messages) == messages

    @pytest.mark.parametrize("schema", [{"type": "object"}, {}])
    def test_a_json_schema_goes_out_as_the_response_format(self, schema: dict[str, Any]) -> None:
        options = GenerationOptions(json_schema=MappingProxyType(schema))
        fields = to_chat_fields(GenerateRequest("q", (), MESSAGES, options), "tiny")

        assert fields["response_format"]["type"] == "json_schema"
        assert fields["response_format"]["json_schema"]["schema"] == schema
        assert fields["response_format"]["json_schema"]["name"], "the format requires a name"
        assert json.loads(json.dumps(fields)) == fields


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            ({"code": 400, "param": "temperature", "message": "temperature must be non-negative"}, InvalidInput),
            ({"code": 404, "message": "no such model"}, InvalidInput),
            ({"code": 501, "message": "not implemented"}, InvalidInput),
            ({"code": 400, "param": "input_tokens", "message": "too many"}, InputTooLong),
            ({"code": 400, "message": "This model's maximum context length is 512 tokens."}, InputTooLong),
            ({"code": 503, "message": "The engine is currently busy"}, Overloaded),
            ({"code": 500, "message": "Internal server error"}, EngineFailed),
            ({}, EngineFailed),
        ],
    )
    def test_each_refusal_becomes_the_error_that_tells_who_must_act(
        self, error: Mapping[str, Any], expected: type[StageError]
    ) -> None:
        assert type(to_stage_error(error)) is expected

    def test_the_refusal_keeps_the_engine_s_reason(self) -> None:
        assert "must be non-negative" in str(to_stage_error({"code": 400, "message": "must be non-negative"}))

    @pytest.mark.parametrize(
        "reason",
        ["Failed to transform json schema into a grammar: bad type", "Grammar error: Invalid type: nonsense"],
    )
    def test_a_refused_json_schema_is_named(self, reason: str) -> None:
        error = to_stage_error({"code": 400, "message": reason})

        assert type(error) is InvalidInput
        assert "json_schema" in str(error)
        assert reason in str(error)

    def test_an_engine_that_failed_on_a_schema_is_not_the_caller_s_fault(self) -> None:
        assert type(to_stage_error({"code": 500, "message": "Failed to compile grammar"})) is EngineFailed

    def test_too_long_names_all_lengths_and_the_remedy(self) -> None:
        message = str(too_long("tiny", prompt_tokens=600, max_tokens=24, context_tokens=512))

        assert all(part in message for part in ("600 tokens", "24", "512", "lower max_tokens", "fewer sources"))

    def test_too_long_does_not_blame_an_option_that_was_not_given(self) -> None:
        assert "max_tokens" not in str(too_long("tiny", prompt_tokens=600, max_tokens=None, context_tokens=512))

    @pytest.mark.parametrize(("reason", "expected"), [("stop", "stop"), ("length", "length"), ("repetition", "stop")])
    def test_a_finished_answer_has_one_of_two_reasons(self, reason: str, expected: str) -> None:
        assert to_finish_reason(reason) == expected

    def test_an_answer_that_the_engine_gave_up_is_not_a_finished_one(self) -> None:
        with pytest.raises(EngineFailed):
            to_finish_reason("abort")


class TestConfig:
    def test_cpu_fits_beside_the_other_stages_and_never_queues_without_bound(self) -> None:
        fields = to_llm_fields(VllmConfig(model_id="tiny"))
        deployment = fields["deployment_config"]

        assert fields["accelerator_config"] == {"kind": "cpu"}
        assert fields["placement_group_config"]["bundles"][0]["CPU"] + deployment["ray_actor_options"]["num_cpus"] < 1
        assert deployment["max_ongoing_requests"] <= 64
        assert deployment["max_queued_requests"] <= 64
        assert fields["experimental_configs"] == {"stream_batching_interval_ms": 0}

    def test_what_is_passed_through_wins_over_the_defaults(self) -> None:
        config = VllmConfig(
            model_id="tiny",
            engine_kwargs={"enforce_eager": False, "max_model_len": 512},
            runtime_env={"env_vars": {"VLLM_NO_USAGE_STATS": "0", "MINE": "1"}},
            deployment={"max_ongoing_requests": 8, "autoscaling_config": {"max_replicas": 3}},
            placement_bundles=[{"CPU": 2}],
        )
        fields = to_llm_fields(config)

        assert fields["engine_kwargs"]["enforce_eager"] is False
        assert fields["engine_kwargs"]["max_model_len"] == 512
        assert fields["runtime_env"]["env_vars"]["VLLM_NO_USAGE_STATS"] == "0"
        assert fields["runtime_env"]["env_vars"]["MINE"] == "1"
        assert fields["deployment_config"]["max_ongoing_requests"] == 8
        assert "num_replicas" not in fields["deployment_config"], "Serve refuses it beside autoscaling_config"
        assert fields["placement_group_config"] == {"bundles": [{"CPU": 2}]}

    def test_the_cache_size_in_bytes_is_not_overruled_by_the_default(self) -> None:
        config = VllmConfig(model_id="tiny", engine_kwargs={"kv_cache_memory_bytes": 2**28})

        assert "VLLM_CPU_KVCACHE_SPACE" not in to_llm_fields(config)["runtime_env"]["env_vars"]

    def test_one_worker_on_a_cpu_shares_the_engine_s_process_unless_told_otherwise(self) -> None:
        def executor(**engine_kwargs: Any) -> Any:
            fields = to_llm_fields(VllmConfig(model_id="tiny", engine_kwargs=engine_kwargs))
            return fields["engine_kwargs"].get("distributed_executor_backend")

        assert executor() == ONE_PROCESS
        assert executor(distributed_executor_backend="mp") == "mp"
        assert executor(tensor_parallel_size=2) is None
        gpu = to_llm_fields(VllmConfig(model_id="tiny", accelerator="gpu"))
        assert "distributed_executor_backend" not in gpu["engine_kwargs"]

    @pytest.mark.parametrize(
        ("bundles", "share"),
        [
            ([{"CPU": 1, "GPU": 0.5}], "0.5"),
            ([{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}], None),
            ([{"CPU": 1}], None),
            (None, None),
        ],
    )
    def test_a_replica_on_a_part_of_a_gpu_is_told_how_large_it_is(
        self, bundles: list[dict[str, float]] | None, share: str | None
    ) -> None:
        config = VllmConfig(model_id="tiny", accelerator="gpu", placement_bundles=bundles)
        assert to_llm_fields(config)["runtime_env"]["env_vars"].get("VLLM_RAY_PER_WORKER_GPUS") == share

    def test_cpu_threads_are_counted_but_not_bound_to_cores(self) -> None:
        env_vars = to_llm_fields(VllmConfig(model_id="tiny", cpu_threads=3))["runtime_env"]["env_vars"]

        assert env_vars["OMP_NUM_THREADS"] == "3"
        assert env_vars["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"

    def test_gpu_leaves_placement_to_ray_and_compilation_on(self) -> None:
        fields = to_llm_fields(VllmConfig(model_id="tiny", accelerator="gpu", accelerator_type="H200"))

        assert fields["accelerator_type"] == "H200"
        assert "placement_group_config" not in fields
        assert "enforce_eager" not in fields["engine_kwargs"]

    def test_home_is_expanded_and_a_hub_id_is_left_alone(self) -> None:
        assert VllmConfig(model_id="a", model_source="~/model").model_source == str(Path.home() / "model")
        assert VllmConfig(model_id="a", model_source="Qwen/Qwen3-0.6B").model_source == "Qwen/Qwen3-0.6B"

    @pytest.mark.parametrize(
        ("fields", "complaint"),
        [
            ({"engine_kwargs": {"model": "x"}}, "model_source"),
            ({"engine_kwargs": {"served_model_name": "x"}}, "model_id"),
            ({"engine_kwargs": {"tokenizer": "x"}}, "tokenizer_source"),
            ({"accelerator_type": "H200"}, "accelerator"),
            ({"accelerator": "gpu", "cpu_threads": 2}, "cpu_threads"),
            ({"cpu_threads": 0}, "cpu_threads"),
            ({"engine_kwarg": {}}, "engine_kwargs"),
            ({"model_source": "s3://bucket/model"}, "tokenizer_source"),
        ],
    )
    def test_contradictions_are_refused_with_the_key_to_change(self, fields: dict[str, Any], complaint: str) -> None:
        with pytest.raises(ValidationError, match=complaint):
            VllmConfig(model_id="tiny", **fields)

    def test_beside_a_model_at_a_uri_the_tokenizer_has_a_place_of_its_own(self, model: Path) -> None:
        config = VllmConfig(model_id="tiny", model_source="s3://bucket/model", tokenizer_source=str(model))

        assert to_llm_fields(config)["model_loading_config"]["model_source"] == "s3://bucket/model"
        assert to_llm_fields(config)["engine_kwargs"]["tokenizer"] == str(model)
        assert build_token_counter(config).count("Who built the bridge?") > 0

    def test_every_field_is_described(self) -> None:
        assert [name for name, field in VllmConfig.model_fields.items() if not field.description] == []

    def test_importing_the_config_imports_no_framework(self) -> None:
        code = "import sys, deployments.vllm_generator as g; print(sorted(sys.modules.keys() & set(sys.argv[1:])))"
        heavy = ["ray", "vllm", "torch", "transformers"]
        done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)

        assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llm(tmp_path_factory.mktemp("tiny"))


class TestTokenCounter:
    @pytest.mark.parametrize("text", ["", "Who built the bridge?", "Ünïcödé 🙂\n\n", "word " * 500])
    def test_counts_what_the_tokenizer_makes_of_the_text(self, model: Path, text: str) -> None:
        counter = TokenCounter(str(model))
        expected = len(train_tokenizer().encode(text).ids)

        assert [counter.count(text), counter.count(text)] == [expected, expected]

    def test_a_conversation_counts_with_its_template(self, model: Path) -> None:
        prompt = "".join(f"{START_OF_TURN}{m['role']}\n{m['content']}{END_OF_TURN}\n" for m in MESSAGES)
        expected = len(train_tokenizer().encode(f"{prompt}{START_OF_TURN}assistant\n").ids)

        assert TokenCounter(str(model)).count_messages(MESSAGES) == expected

    def test_a_given_template_and_its_variables_replace_the_model_s_own(self, model: Path) -> None:
        template = "{{ messages[0].content }}{% if loud %}!!{% endif %}{{ eos_token }}"
        config = VllmConfig(
            model_id="tiny",
            model_source=str(model),
            engine_kwargs={"chat_template": template, "default_chat_template_kwargs": {"loud": True}},
        )

        assert build_token_counter(config).count_messages(MESSAGES) == len(
            train_tokenizer().encode(f"Be brief.!!{END_OF_TURN}").ids
        )

    def test_a_template_that_refuses_a_system_message_takes_the_folded_one(self, model: Path) -> None:
        counter = TokenCounter(str(model), chat_template=REFUSING_SYSTEM + CHAT_TEMPLATE)
        (folded,) = fold_system(MESSAGES)
        prompt = f"{START_OF_TURN}user\n{folded['content']}{END_OF_TURN}\n{START_OF_TURN}assistant\n"

        assert counter.count_messages([folded]) == len(train_tokenizer().encode(prompt).ids)
        assert counter.count_messages(MESSAGES) >= counter.count_messages([folded])

    @pytest.mark.parametrize("template", [None, "{% generation %}", "{{ raise_exception('no system role') }}"])
    def test_without_a_usable_template_the_count_is_an_upper_bound(self, tmp_path: Path, template: str | None) -> None:
        counter = TokenCounter(str(make_tiny_llm(tmp_path, chat_template=False)), chat_template=template)
        contents = sum(counter.count(message["content"]) for message in MESSAGES)

        assert counter.count_messages(MESSAGES) == (
            contents + MESSAGE_OVERHEAD_TOKENS * len(MESSAGES) + CONVERSATION_OVERHEAD_TOKENS
        )

    def test_a_truncating_tokenizer_file_does_not_cap_the_count(self, tmp_path: Path) -> None:
        tokenizer = train_tokenizer()
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=8)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        counter = TokenCounter(str(tmp_path))

        assert counter.count("word " * 50) == len(train_tokenizer().encode("word " * 50).ids)
        assert counter.count("a") == 1

    def test_a_folder_without_a_tokenizer_is_a_config_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"tokenizer\.json"):
            TokenCounter(str(tmp_path))


def test_the_tiny_model_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = make_tiny_llm(tmp_path / "a"), make_tiny_llm(tmp_path / "b")
    other = make_tiny_llm(tmp_path / "c", seed=1)

    files = sorted(path.name for path in first.iterdir())
    assert [(first / name).read_bytes() for name in files] == [(second / name).read_bytes() for name in files]
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
