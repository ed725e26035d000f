"""The rewrite stage with a language model: a question that stands on its own, and the sub-queries to search with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.contracts import Generated, GenerateRequest, Generates, GenerationOptions, Timed
from deployments.errors import DeadlineExceeded, EngineFailed, InvalidInput
from deployments.parsing import QUESTION_MAX_CHARS, clean_question
from deployments.section import Section

Messages = Sequence[Mapping[str, str]]
WriteMessages = Callable[[str, Sequence[str]], Messages]

# JSON knows no raw control character inside a string, but xgrammar, one of vLLM's backends, lets some through.
_CONTROL_TO_SPACE = dict.fromkeys(range(0x20), " ")


class LlmRewritingConfig(Section):
    """Whether the language model that answers also rewrites the question, and what it may spend on that."""

    enabled: bool = Field(
        False,
        description="Let the vLLM generator split questions into sub-queries, and resolve what follow-ups refer to.",
    )
    max_queries: int = Field(4, ge=1, le=16, description="The most sub-queries that one question is split into.")
    max_tokens: int = Field(256, ge=16, description="Longest rewriting in tokens; what does not fit fails as a whole.")
    temperature: float = Field(0.0, ge=0, description="Sampling temperature of the rewriting; 0 is greedy.")
    deadline_share: float = Field(
        0.2, gt=0, le=1, description="Share of the request's remaining time that the lane waits for the sub-queries."
    )
    max_query_chars: int = Field(512, ge=16, description="Longer sub-queries are dropped.")
    history_turns: int = Field(6, ge=0, description="Turns of the conversation before the question that it is shown.")


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What to search for besides the question as it was asked.

    `question` is the question with everything resolved that it takes from the conversation; None where there is no
    conversation, or nothing to resolve. `queries` differ from both, and from each other, in more than case and white
    space.
    """

    question: str | None
    queries: tuple[str, ...]


class _Reply(BaseModel):
    """What `rewrite_schema` asks for."""

    model_config = ConfigDict(strict=True, extra="forbid")

    question: str
    queries: list[str]


def rewrite_schema(max_queries: int, max_query_chars: int) -> dict[str, Any]:
    """The JSON schema of a rewriting: a `question` and up to `max_queries` `queries` of up to `max_query_chars` each.

    `question` has no `maxLength`: where there is one, xgrammar allows no escapes, and a text ends before the first
    quotation mark in it. vLLM's guidance backend has no such gap.
    """
    query = {"type": "string", "maxLength": max_query_chars}
    return {
        "type": "object",
        "properties": {
            "question": {"type": "string"},
            "queries": {"type": "array", "items": query, "maxItems": max_queries},
        },
        "required": ["question", "queries"],
        "additionalProperties": False,
    }


class LlmRewriter:
    """Asks a language model for sub-queries as JSON.

    `messages(question, history)` writes the prompt. Client and conversation wrote both: they belong in user messages.
    """

    def __init__(self, generator: Generates, config: LlmRewritingConfig, messages: WriteMessages) -> None:
        self._generator = generator
        self._config = config
        self._messages = messages
        self._options = GenerationOptions(
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            # One more than is used: a query that the grammar cut off is then known by its length.
            json_schema=rewrite_schema(config.max_queries, config.max_query_chars + 1),
        )

    async def rewrite(
        self, question: str, history: Sequence[str], budget_s: float, request_id: str = ""
    ) -> Timed[Rewritten]:
        """`history` is the conversation before the question, oldest first; the timing is the generator's.

        Raises DeadlineExceeded when `budget_s` is over, EngineFailed for an answer that is not the JSON asked for, and
        whatever the generator raises. The generator has stopped by then.
        """
        if budget_s <= 0:
            raise DeadlineExceeded("no time is left to rewrite the question")
        request = GenerateRequest(
            question=question,
            sources=(),
            messages=tuple(self._messages(question, history)),
            options=self._options,
            request_id=f"{request_id}-rewrite" if request_id else "",
            budget_s=budget_s,
        )
        try:
            async with asyncio.timeout(budget_s):
                text, end = await self._collect(request)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the question was not rewritten within {budget_s:g} s") from error
        reply = _parse(text, end)
        return Timed(self._choose(reply, question, in_conversation=bool(history)), end.timing)

    async def _collect(self, request: GenerateRequest) -> tuple[str, Generated]:
        pieces: list[str] = []
        async with aclosing(self._generator.generate(request)) as events:
            async for event in events:
                if isinstance(event, Generated):
                    return "".join(pieces), event
                pieces.append(event.text)
        raise EngineFailed("the generator broke off before the end of the rewriting")

    def _choose(self, reply: _Reply, question: str, *, in_conversation: bool) -> Rewritten:
        # Without a conversation the question stands on its own already, and no model may change what was asked.
        standalone = _clean(reply.question, QUESTION_MAX_CHARS) if in_conversation else None
        known = {" ".join(question.split()).casefold()}
        if standalone is not None and standalone.casefold() in known:
            standalone = None
        if standalone is not None:
            known.add(standalone.casefold())
        queries: list[str] = []
        for text in reply.queries:
            query = _clean(text, self._config.max_query_chars)
            if query is not None and query.casefold() not in known:
                known.add(query.casefold())
                queries.append(query)
        return Rewritten(standalone, tuple(queries[: self._config.max_queries]))


def _parse(text: str, end: Generated) -> _Reply:
    try:
        return _Reply.model_validate_json(text.translate(_CONTROL_TO_SPACE))
    except ValidationError as error:
        if end.finish_reason == "length":
            raise EngineFailed(
                f"the rewriting was cut off after {end.usage.completion_tokens} tokens; raise the rewriter's max_tokens"
            ) from error
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in problem["loc"])
        reason = f"{place}: {problem['msg']}" if place else problem["msg"]
        raise EngineFailed(f"{end.generator} did not rewrite the question as the JSON asked for: {reason}") from error


def _clean(text: str, max_chars: int) -> str | None:
    """The text as a question is cleaned; None for one that is empty or too long. The length counts before cleaning."""
    if len(text) > max_chars:
        return None
    try:
        return clean_question(text, max_chars)
    except InvalidInput:
        return None
