"""The first half of the lane: from a question to the passages that match it best, every branch on its own.

              ┌─► embed ─► search (vector, every query at once) ─┐
parse ─► rules┼─► search (text, every query at once) ────────────┼─► fuse ─► rerank
              └─► language model ─► embed ─► search ─────────────┘
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from deployments.contracts import (
    STAGES,
    Candidate,
    EmbedRequest,
    Embeds,
    Generates,
    Passage,
    RerankRequest,
    Reranks,
    Searches,
    SearchKind,
    SearchMode,
    SearchRequest,
    Stage,
    Timed,
    Vector,
)
from deployments.errors import IndexMismatch, InvalidInput, NotFound, StageError
from deployments.llm_rewriting import Rewritten
from deployments.parsing import parse_question
from deployments.ranking import Hits, blend, fuse
from deployments.rewriting import sub_queries
from deployments.together import all_together
from serve_app.lane_config import LaneConfig
from serve_app.trace import Deadline, Trace

# Of one filter: how many fields, values of one field, and characters of names and values.
MAX_FILTER_FIELDS = 100
MAX_FILTER_VALUES = 1000
MAX_FILTER_CHARS = 65_536

# What only the client can mend is never answered with less; everything else may be.
CLIENTS_FAULT = (InvalidInput, NotFound, IndexMismatch)


class Rewrites(Protocol):
    """Asks a language model for sub-queries."""

    async def rewrite(
        self, question: str, history: Sequence[str], budget_s: float, request_id: str = ""
    ) -> Timed[Rewritten]: ...


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages that are deployments, as the lane sees them; None where one is not configured.

    `fallback` answers when the generator can't; `rewriter` is the language model's half of the rewrite stage.
    `samples` says that the generator's answers vary unless a request asks for temperature 0 or names a seed;
    `embedding_model` names the model that the embedder runs, so that collections of another one are refused.
    """

    embedder: Embeds
    retriever: Searches
    reranker: Reranks
    generator: Generates
    fallback: Generates | None = None
    rewriter: Rewrites | None = None
    samples: bool = False
    embedding_model: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for. `filter` as in SearchRequest; `history` holds earlier turns of a conversation, oldest first.

    `rewrite` lets sub-queries be searched beside the question, `rerank` lets the rerank stage have its say.
    """

    text: str
    collection: str
    k: int
    mode: SearchMode = "hybrid"
    rerank: bool = True
    rewrite: bool = True
    filter: Mapping[str, Any] | None = None
    history: tuple[str, ...] = ()
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Understood:
    """A query as the parse and rewrite stages read it: `texts` are the question and its sub-queries."""

    texts: tuple[str, ...]
    phrases: tuple[str, ...]
    filter: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The question."""
        return self.texts[0]


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Passages by descending score, why stages were left out, and the question's vector if there is one.

    `version` is the collection's, None where the searches saw different ones.
    """

    passages: list[Passage]
    left_out: Mapping[Stage, str]
    vector: Vector | None
    version: int | None


@dataclass(slots=True)
class _Request:
    """One request on its way through the branches, which write down here what they find."""

    query: Query
    understood: Understood
    deadline: Deadline
    trace: Trace
    hits: list[Hits] = field(default_factory=list)
    versions: set[int] = field(default_factory=set)
    failed: dict[Stage, StageError] = field(default_factory=dict)
    vector: Vector | None = None

    def left_out(self) -> dict[Stage, str]:
        return {stage: self.failed[stage].reason for stage in STAGES if stage in self.failed}


class Retrieval:
    """parse → rewrite → embed and search, all branches at once → fuse → rerank."""

    def __init__(self, config: LaneConfig, stages: Stages) -> None:
        self._config = config
        self._stages = stages

    def understand(self, query: Query, trace: Trace) -> Understood:
        """Parse the question and split it by the rules. Raises InvalidInput."""
        with trace.local("parse"):
            parsed = parse_question(query.text, self._config.parsing)
            filter_ = _merged(parsed.filter, query.filter or {})
        with trace.local("rewrite"):
            more = sub_queries(parsed, self._config.rewriting) if query.rewrite else ()
        return Understood((parsed.text, *more), parsed.phrases, filter_)

    async def find(self, query: Query, understood: Understood, deadline: Deadline, trace: Trace) -> Retrieved:
        """The passages that match best. A branch that fails is left out; the others still answer."""
        request = _Request(query, understood, deadline, trace)
        branches: list[Callable[[], Awaitable[None]]] = []
        if query.mode != "text":
            branches.append(lambda: self._by_vector(request, understood.texts))
        if query.mode != "vector":
            branches.append(lambda: self._by_text(request, understood.texts))
        if query.rewrite and self._stages.rewriter is not None:
            branches.append(lambda: self._by_language_model(request))
        await self._together(branches)
        # Without any time left there is no answer to give; else it is given without what failed.
        deadline.remaining_s()
        if not request.versions:
            raise request.failed.get("search") or request.failed["embed"]
        with trace.local("search", "fuse"):
            depth = max(query.k, self._config.rerank_candidates)
            passages = fuse(request.hits, self._config.fusion, understood.phrases, depth)
        if query.rerank and passages and self._config.rerank_weight:
            passages = await self._rerank(request, passages)
        version = request.versions.pop() if len(request.versions) == 1 else None
        return Retrieved(passages[: query.k], request.left_out(), request.vector, version)

    async def _by_vector(self, request: _Request, texts: tuple[str, ...], first: int = 0) -> None:
        budget_s = self._budget_s(request, self._config.embed_timeout_s)
        try:
            embedded = await request.trace.timed("embed", self._stages.embedder.embed(EmbedRequest(texts), budget_s))
        except CLIENTS_FAULT:
            raise
        except StageError as error:
            request.failed["embed"] = error
            if request.query.mode == "vector":
                await self._by_text(request, texts, first)
            return
        if first == 0:
            request.vector = embedded.vectors[0]
        await self._search(request, "vector", texts, first, list(embedded.vectors))

    async def _by_text(self, request: _Request, texts: tuple[str, ...], first: int = 0) -> None:
        await self._search(request, "text", texts, first, [None] * len(texts))

    async def _by_language_model(self, request: _Request) -> None:
        """Search what the language model makes of the question, if it does so within its share of the deadline."""
        assert self._stages.rewriter is not None
        query, understood = request.query, request.understood
        budget_s = request.deadline.remaining_s() * self._config.llm_rewriting.deadline_share
        turns = self._config.llm_rewriting.history_turns
        history = query.history[-turns:] if turns else ()
        asked = self._stages.rewriter.rewrite(understood.text, history, budget_s, query.request_id)
        try:
            rewritten = await request.trace.timed("rewrite", asked, "language model")
        except StageError as error:
            request.failed["rewrite"] = error
            return
        known = {text.casefold() for text in understood.texts}
        proposed = (*((rewritten.question,) if rewritten.question else ()), *rewritten.queries)
        new = tuple(text for text in proposed if text.casefold() not in known)
        if new:
            first = len(understood.texts)
            branches: list[Callable[[], Awaitable[None]]] = []
            if query.mode != "text":
                branches.append(lambda: self._by_vector(request, new, first))
            if query.mode != "vector":
                branches.append(lambda: self._by_text(request, new, first))
            await self._together(branches)

    async def _search(
        self,
        request: _Request,
        kind: SearchKind,
        texts: Sequence[str],
        first: int,
        vectors: Sequence[Vector | None],
    ) -> None:
        """Search every query at once: the hop to the stage carries them in one call."""

        async def search(index: int) -> None:
            query = request.query
            wanted = SearchRequest(
                query.collection,
                self._depth(query),
                kind,
                vectors[index],
                texts[index],
                request.understood.filter,
                self._stages.embedding_model,
            )
            asked = self._stages.retriever.search(wanted, self._budget_s(request))
            try:
                found = await request.trace.timed("search", asked, kind)
            except CLIENTS_FAULT as error:
                if not (isinstance(error, IndexMismatch) and kind == "text" and query.mode == "hybrid"):
                    raise
                # Made before there was text search; by vector it can be searched all the same.
                request.failed["search"] = error
                return
            except StageError as error:
                request.failed["search"] = error
                return
            complete = len(found.passages) < wanted.k
            request.hits.append(Hits(first + index, kind, found.passages, complete))
            request.versions.add(found.version)

        await self._together([lambda index=index: search(index) for index in range(len(texts))])  # type: ignore[misc]

    def _budget_s(self, request: _Request, at_most_s: float = math.inf) -> float:
        """What one call may take, so that what fails to answer in time leaves the others some."""
        return min(request.deadline.remaining_s() * self._config.stage_deadline_share, at_most_s)

    def _depth(self, query: Query) -> int:
        """How many passages each search returns."""
        if query.mode == "hybrid":
            return max(query.k, self._config.candidates_per_search)
        return max(query.k, self._config.rerank_candidates) if query.rerank else query.k

    async def _rerank(self, request: _Request, passages: list[Passage]) -> list[Passage]:
        query = request.query
        candidates = tuple(Candidate(p.text, p.id, p.title) for p in passages[: self._config.rerank_candidates])
        asked = RerankRequest(request.understood.text, candidates, query.collection, request.vector)
        budget_s = self._budget_s(request, self._config.rerank_timeout_s)
        try:
            scores = await request.trace.timed("rerank", self._stages.reranker.rerank(asked, budget_s))
        except InvalidInput:
            raise
        except StageError as error:
            request.deadline.remaining_s()
            request.failed["rerank"] = error
            return passages
        return blend(passages, scores, self._config.rerank_weight, query.k)

    async def _together(self, branches: Sequence[Callable[[], Awaitable[None]]]) -> None:
        """Run branches that need nothing of each other; the first to fail stops the others."""
        if len(branches) == 1 or not self._config.concurrent:
            for branch in branches:
                await branch()
            return
        await all_together([branch() for branch in branches])


def _merged(inline: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Both filters; a field may stand in one of them only, because two conditions on it would hide each other."""
    for name in inline.keys() & given.keys():
        raise InvalidInput(f"filter field {name!r} stands in the question and in `filter`; leave one of them out")
    merged = {**inline, **given}
    num_chars = sum(_num_chars(name, wanted) for name, wanted in merged.items())
    if len(merged) > MAX_FILTER_FIELDS or num_chars > MAX_FILTER_CHARS:
        raise InvalidInput(
            f"the filter has {len(merged)} fields and {num_chars} characters; at most {MAX_FILTER_FIELDS} fields and "
            f"{MAX_FILTER_CHARS} characters may be sent, names and values together"
        )
    return merged


def _num_chars(name: str, wanted: Any) -> int:
    """The size of one field's condition. Raises InvalidInput for what no filter needs: it would travel with the
    requests of others."""
    inner = (
        wanted.values() if isinstance(wanted, Mapping) else wanted if isinstance(wanted, list | tuple) else (wanted,)
    )
    if any(isinstance(value, Mapping | list | tuple) for value in inner):
        raise InvalidInput(f"filter field {name!r}: a value inside a list or an object must be a scalar")
    num_chars = sum(len(str(value)) for value in inner)
    if len(inner) > MAX_FILTER_VALUES or num_chars > MAX_FILTER_CHARS:
        raise InvalidInput(
            f"filter field {name!r}: at most {MAX_FILTER_VALUES} values of {MAX_FILTER_CHARS} characters together"
        )
    return len(name) + num_chars + (sum(map(len, wanted)) if isinstance(wanted, Mapping) else 0)
