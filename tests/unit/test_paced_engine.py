"""Outputs of the real vLLM's type, joined where they come faster than they may travel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from deployments.pacing import PaceConfig, Pacer
from tests.virtual_time import timed

outputs = pytest.importorskip("vllm.outputs")


class Client:
    """Says a word each millisecond, and names the reason why it ends with the last."""

    is_running = True

    async def generate(self, prompt: str, words: list[str]) -> AsyncGenerator[Any]:
        for place, word in enumerate(words):
            last = place == len(words) - 1
            completion = outputs.CompletionOutput(
                index=0,
                text=word,
                token_ids=[place],
                cumulative_logprob=None,
                logprobs=None,
                finish_reason="stop" if last else None,
            )
            yield outputs.RequestOutput(
                request_id="1",
                prompt=prompt,
                prompt_token_ids=[1, 2, 3],
                prompt_logprobs=None,
                outputs=[completion],
                finished=last,
            )
            await asyncio.sleep(0.001)


def test_the_first_word_travels_alone_and_the_others_together() -> None:
    from deployments.vllm_server import PacedEngine

    async def run() -> list[Any]:
        engine = PacedEngine(Client(), Pacer(PaceConfig(max_messages_per_s=1)))
        assert engine.is_running
        return [output async for output in engine.generate("a prompt", words=["The ", "moon ", "pulls."])]

    first, rest = timed(run)[0]
    assert (first.outputs[0].text, list(first.outputs[0].token_ids), first.finished) == ("The ", [0], False)
    assert (rest.outputs[0].text, list(rest.outputs[0].token_ids), rest.finished) == ("moon pulls.", [1, 2], True)
    assert rest.outputs[0].finish_reason == "stop"
    assert rest.prompt_token_ids == [1, 2, 3]
