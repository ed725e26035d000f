"""Rewriting by a language model, with a generator that says what it is told to say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.contracts import (
    Delta,
    Generated,
    GenerateRequest,
    GenerationEvent,
    StageTiming,
    Usage,
)
from deployments.errors import DeadlineExceeded, EngineDead, EngineFailed, StageError
from deployments.llm_rewriting import LlmRewriter, LlmRewritingConfig, Rewritten, rewrite_schema

QUESTION = "Who built the bridge, and when?"
HISTORY = ("Tell me about the old bridge.", "It fell in 1902.")
TIMING = StageTiming(batch_wait_s=0.25, compute_s=0.5)


@dataclass
class Scripted:
    """Says `reply` character by character, then ends. It may instead raise `error`, stop short or hang at the end."""

    reply: str = ""
    finish_reason: Literal["stop", "length"] = "stop"
    error: StageError | None = None
    ends: bool = True
    hangs: bool = False
    requests: list[GenerateRequest] = field(default_factory=list)
    num_running: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        self.requests.append(request)
        self.num_running += 1
        self.begun.set()
        try:
            for character in self.reply:
                yield Delta(character)
            if self.hangs:
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error
            if self.ends:
                yield Generated(self.finish_reason, Usage(20, len(self.reply)), TIMING, "scripted")
        finally:
            self.num_running -= 1


def _messages(question: str, history: Sequence[str]) -> tuple[Mapping[str, str], ...]:
    return ({"role": "system", "content": "Split."}, {"role": "user", "content": "\n".join([*history, question])})


def _rewriter(generator: Scripted, **config: Any) -> LlmRewriter:
    return LlmRewriter(generator, LlmRewritingConfig(**config), _messages)


def _reply(*queries: str, question: str = QUESTION) -> str:
    return json.dumps({"question": question, "queries": queries})


async def _rewrite(reply: str, history: Sequence[str] = HISTORY, **config: Any) -> Rewritten:
    return (await _rewriter(Scripted(reply), **config).rewrite(QUESTION, history, 60.0)).value


class TestRequest:
    async def test_the_prompt_the_budget_and_the_schema_reach_the_generator(self) -> None:
        generator = Scripted(_reply())
        rewriter = _rewriter(generator, max_queries=3, max_query_chars=100, max_tokens=64, temperature=0.5)
        await rewriter.rewrite(QUESTION, HISTORY, 60.0, request_id="r-1")

        (request,) = generator.requests
        assert request.messages == _messages(QUESTION, HISTORY)
        assert (request.question, request.sources, request.budget_s) == (QUESTION, (), 60.0)
        assert (request.options.max_tokens, request.options.temperature) == (64, 0.5)
        assert request.options.json_schema is not None
        assert request.options.json_schema["properties"]["queries"]["maxItems"] == 3

    @pytest.mark.parametrize(("given_id", "sent_id"), [("r-1", "r-1-rewrite"), ("", "")])
    async def test_the_rewriting_has_a_name_of_its_own_beside_the_answer(self, given_id: str, sent_id: str) -> None:
        generator = Scripted(_reply())
        await _rewriter(generator).rewrite(QUESTION, (), 60.0, request_id=given_id)

        assert generator.requests[0].request_id == sent_id

    async def test_the_time_is_the_generator_s(self) -> None:
        rewritten = await _rewriter(Scripted(_reply("bridge builder"))).rewrite(QUESTION, (), 60.0)

        assert rewritten.timing == TIMING


class TestQueries:
    async def test_queries_keep_their_order(self) -> None:
        rewritten = await _rewrite(_reply("bridge builder", "bridge opening year"))

        assert rewritten.queries == ("bridge builder", "bridge opening year")

    @pytest.mark.parametrize(
        ("queries", "kept"),
        [
            (["  who\n built\tit "], ("who built it",)),
            (["", "   ", "\n"], ()),
            (["Bridge builder", "bridge  BUILDER", "year"], ("Bridge builder", "year")),
            ([QUESTION, f" {QUESTION.upper()} "], ()),
            (["who built the old bridge?"], ()),
            (["x" * 20, "x" * 21], ("x" * 20,)),
            (["x  " * 7], ()),
            (["a", "a", "b", "c", "d"], ("a", "b", "c")),
            (['the "old" bridge'], ('the "old" bridge',)),
            (["bell\x07rope"], ("bell rope",)),
        ],
        ids=[
            "space",
            "empty",
            "twice",
            "asked",
            "resolved",
            "long",
            "long unfolded",
            "many",
            "quotes",
            "control",
        ],
    )
    async def test_only_new_and_usable_queries_are_kept(self, queries: list[str], kept: tuple[str, ...]) -> None:
        reply = _reply(*queries, question="Who built the old bridge?")
        rewritten = await _rewrite(reply, max_queries=3, max_query_chars=20)

        assert rewritten.queries == kept

    @given(st.lists(st.text(max_size=24), max_size=8), st.text(max_size=24))
    async def test_whatever_the_model_says_the_limits_hold(self, queries: list[str], question: str) -> None:
        rewritten = await _rewrite(_reply(*queries, question=question), max_queries=3, max_query_chars=16)

        folded = [query.casefold() for query in rewritten.queries]
        assert len(folded) == len(set(folded)) <= 3
        assert QUESTION.casefold() not in folded
        assert rewritten.question != ""
        assert all(0 < len(query) <= 16 and query == " ".join(query.split()) for query in rewritten.queries)

    async def test_a_raw_control_character_inside_a_string_is_white_space(self) -> None:
        rewritten = await _rewrite('{"question": "q", "queries": ["bridge\tbuilder"]}')

        assert rewritten.queries == ("bridge builder",)


class TestQuestion:
    async def test_a_follow_up_is_resolved(self) -> None:
        rewritten = await _rewrite(_reply(question=" Who built  the old bridge? "))

        assert rewritten.question == "Who built the old bridge?"

    @pytest.mark.parametrize("question", ["", "  ", QUESTION, f" {QUESTION.upper()}", "x" * 10_000])
    async def test_a_question_that_is_empty_or_endless_or_the_same_is_none(self, question: str) -> None:
        assert (await _rewrite(_reply(question=question))).question is None

    async def test_without_a_conversation_no_other_question_replaces_the_one_asked(self) -> None:
        assert (await _rewrite(_reply(question="Who likes cheese?"), history=())).question is None


class TestBrokenReplies:
    @pytest.mark.parametrize(
        ("reply", "complaint"),
        [
            ("", "JSON"),
            ("I can't do that.", "JSON"),
            (_reply("a") + " There you are.", "JSON"),
            ("[" * 5000, "JSON"),
            ('{"question": "\\ud800", "queries": []}', "JSON"),
            ("null", "object"),
            ('["a"]', "object"),
            ('{"question": "q"}', "queries"),
            ('{"question": 1, "queries": []}', "question"),
            ('{"question": "q", "queries": "a"}', "queries"),
            ('{"question": "q", "queries": ["a", null]}', r"queries\.1"),
            ('{"question": "q", "queries": [], "answer": "42"}', "answer"),
        ],
    )
    async def test_a_reply_of_another_shape_fails_with_the_place(self, reply: str, complaint: str) -> None:
        with pytest.raises(EngineFailed, match=complaint):
            await _rewrite(reply)

    async def test_the_complaint_does_not_repeat_what_the_model_wrote(self) -> None:
        with pytest.raises(EngineFailed) as failed:
            await _rewrite('{"question": "sesame", "queries": "sesame"}')

        assert "sesame" not in str(failed.value)

    async def test_a_reply_that_was_cut_off_names_the_limit_to_raise(self) -> None:
        generator = Scripted(_reply("bridge builder")[:-6], finish_reason="length")

        with pytest.raises(EngineFailed, match="max_tokens"):
            await _rewriter(generator).rewrite(QUESTION, (), 60.0)

    async def test_a_reply_that_is_complete_at_the_limit_counts(self) -> None:
        generator = Scripted(_reply("bridge builder"), finish_reason="length")

        rewritten = await _rewriter(generator).rewrite(QUESTION, (), 60.0)
        assert rewritten.value.queries == ("bridge builder",)

    async def test_a_generator_that_breaks_off_fails_even_after_complete_json(self) -> None:
        with pytest.raises(EngineFailed, match="broke off"):
            await _rewriter(Scripted(_reply("a"), ends=False)).rewrite(QUESTION, (), 60.0)

    async def test_the_generator_s_own_error_passes_through(self) -> None:
        generator = Scripted(_reply("a"), error=EngineDead("gone"))

        with pytest.raises(EngineDead):
            await _rewriter(generator).rewrite(QUESTION, (), 60.0)
        assert generator.num_running == 0


class TestGivingUp:
    async def test_a_generator_over_its_budget_is_closed(self) -> None:
        generator = Scripted(_reply("a"), hangs=True)

        with pytest.raises(DeadlineExceeded):
            await _rewriter(generator).rewrite(QUESTION, (), 0.05)
        assert (len(generator.requests), generator.num_running) == (1, 0)

    @pytest.mark.parametrize("budget_s", [0.0, -1.0])
    async def test_without_time_left_nothing_is_asked(self, budget_s: float) -> None:
        generator = Scripted(_reply("a"))

        with pytest.raises(DeadlineExceeded):
            await _rewriter(generator).rewrite(QUESTION, (), budget_s)
        assert generator.requests == []

    async def test_a_cancelled_rewriting_closes_its_generator(self) -> None:
        generator = Scripted(_reply("a"), hangs=True)
        rewriting = asyncio.create_task(_rewriter(generator).rewrite(QUESTION, (), 60.0))
        await generator.begun.wait()

        rewriting.cancel()

        with pytest.raises(asyncio.CancelledError):
            await rewriting
        assert generator.num_running == 0


class TestConfigAndSchema:
    def test_it_is_off_unless_switched_on(self) -> None:
        assert LlmRewritingConfig().enabled is False

    def test_every_field_is_described(self) -> None:
        assert [name for name, info in LlmRewritingConfig.model_fields.items() if not info.description] == []

    @pytest.mark.parametrize(
        "fields", [{"max_queries": 0}, {"deadline_share": 0.0}, {"deadline_share": 1.1}, {"temperature": -0.1}]
    )
    def test_values_that_make_no_sense_are_refused_by_name(self, fields: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match=next(iter(fields))):
            LlmRewritingConfig(**fields)

    def test_the_schema_bounds_number_and_length_and_asks_for_the_question_first(self) -> None:
        schema = rewrite_schema(max_queries=3, max_query_chars=50)

        queries = schema["properties"]["queries"]
        assert (queries["maxItems"], queries["items"]["maxLength"]) == (3, 50)
        assert list(schema["properties"]) == schema["required"] == ["question", "queries"]
        assert schema["additionalProperties"] is False

    async def test_a_query_that_fills_the_schema_was_cut_off_and_is_dropped(self) -> None:
        generator = Scripted(_reply())
        await _rewriter(generator, max_query_chars=20).rewrite(QUESTION, (), 60.0)
        schema = generator.requests[0].options.json_schema
        assert schema is not None

        generator.reply = _reply("x" * schema["properties"]["queries"]["items"]["maxLength"], "whole")
        rewritten = await _rewriter(generator, max_query_chars=20).rewrite(QUESTION, (), 60.0)

        assert rewritten.value.queries == ("whole",)
