"""The context stage: which passages the generator gets to see, in which order, and under which numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pydantic import Field

from deployments.contracts import Passage, Source
from deployments.defusing import defuse
from deployments.near_duplicates import NearDuplicates
from deployments.neighbours import Joining, Runs
from deployments.prompts import (
    NOT_FOUND,
    SOURCE_SEPARATOR,
    Messages,
    PromptsConfig,
    prompt_messages,
    render_source,
    render_sources,
)
from deployments.section import Section
from deployments.source_order import PrefixOrder

__all__ = [
    "MAX_MISSES",
    "NOT_FOUND",
    "Context",
    "ContextBuilder",
    "ContextConfig",
    "CountMessages",
    "CountTokens",
    "render_source",
]

CountTokens = Callable[[str], int]
CountMessages = Callable[[Messages], int]
# Tokens of a source with this title and this text, as it stands in the prompt.
CountSource = Callable[[str, str], int]

REMEMBERED_COUNTS = 4096

# Counting a passage's tokens takes a third of a millisecond of the ingress's event loop: after this many that did not
# fit, the context counts as full.
MAX_MISSES = 32

# Where two texts meet, tokens may join or break up: by how many the whole may differ from the sum, per meeting.
SEAM_TOKENS = 4


class ContextConfig(Section):
    """How much of what was found the generator gets, and in which words."""

    max_context_tokens: int = Field(2048, ge=64, description="Token budget of all sources together.")
    max_sources: int = Field(8, ge=1, le=99, description="The most sources one answer may draw on.")
    drop_near_duplicates: bool = Field(True, description="Leave out passages that repeat a better one.")
    near_duplicate_similarity: float = Field(
        0.85, gt=0, le=1, description="Share of its three-word sequences from which a passage repeats another one."
    )
    merge_neighbours: bool = Field(
        True, description="Make one source of passages that follow each other in their document."
    )
    share_prefix: bool = Field(
        True,
        description="Order the sources so that requests with sources in common begin alike, which spares a language "
        "model with a prefix cache the work. Only for language models; off, and for others, the best come first.",
    )
    prefix_tree_nodes: int = Field(
        4096, ge=1, description="Places of sources in earlier prompts that each ingress replica remembers for that."
    )
    reserved_answer_tokens: int = Field(
        512, ge=1, description="Tokens kept free for an answer where the request does not set max_tokens."
    )
    check_citations: bool = Field(
        True, description="Remove citations of sources that were never given from a language model's answer."
    )
    prompts: PromptsConfig = Field(default_factory=PromptsConfig, description="The words of every prompt.")


@dataclass(frozen=True, slots=True)
class Context:
    """What a generator needs: `sources`, numbered from 1 in this order, and the `messages` that hold them."""

    sources: tuple[Source, ...]
    messages: Messages


class ContextBuilder:
    """Builds the context of one request after another and remembers the order of their sources.

    `count_tokens` counts a text, `count_messages` a whole prompt; the latter is None where no language model reads it.
    It runs on the event loop: what a passage counts is remembered, so passages that are found often cost little.
    """

    def __init__(
        self, config: ContextConfig, count_tokens: CountTokens, count_messages: CountMessages | None = None
    ) -> None:
        self._config = config
        self._count_tokens = count_tokens
        self._count_messages = count_messages
        shares_prefix = config.share_prefix and count_messages is not None
        self._order = PrefixOrder(config.prefix_tree_nodes) if shares_prefix else None
        self._count_source = lru_cache(REMEMBERED_COUNTS)(self._source_tokens)
        self._tokens_around: int | None = None

    @property
    def check_citations(self) -> bool:
        """Whether citations of sources that were never given have to go."""
        return self._config.check_citations

    def build(self, question: str, passages: Iterable[Passage], prompt_limit: int | None = None) -> Context:
        """The best of `passages`, which come best first, that fit the budget; with a limit, the whole prompt fits it.

        A passage that does not fit is left out and the next one is tried, so one long passage can't empty the context.
        One that repeats a better one is left out, too. Passages that follow each other in their document become one
        source, which stands where the best of them stood.

        `prompt_limit` is in tokens: the model's length less those of the answer. Where the question alone is too long
        for it, the context is without sources and as long as it is. Without `count_messages` it is not looked at.
        """
        passages = tuple(passages)
        around = 0
        budget = self._config.max_context_tokens
        if prompt_limit is not None and self._count_messages is not None:
            around = self._count_around(self._count_messages) + self._count_tokens(defuse(question))
            budget = min(budget, prompt_limit - around)
        while True:
            selection = _select(passages, self._config, self._count_source, budget)
            context = self._context(question, selection)
            excess = self._excess(context, selection.tokens, around, prompt_limit)
            if excess <= 0 or not context.sources:
                break
            # Below what was taken now, so something has to go, and a shorter passage may come in for it.
            budget = selection.tokens - excess
        if self._order is not None:
            self._order.record(context.sources)
        return context

    def _context(self, question: str, selection: _Selection) -> Context:
        sources: Sequence[Source] = selection.runs.sources()
        if self._order is not None:
            sources = self._order.order(sources)
        numbered = tuple(source.numbered(number) for number, source in enumerate(sources, start=1))
        return Context(numbered, prompt_messages(question, numbered, self._config.prompts))

    def _excess(self, context: Context, estimate: int, around: int, prompt_limit: int | None) -> int:
        """Tokens over the budget or over the limit, whichever is more; not above 0 where all fits.

        `estimate` is the sum of the parts. It decides where it is far from a limit; counting the whole takes as long
        as counting all its passages anew.
        """
        seams = SEAM_TOKENS * (len(context.sources) + 1)
        excess = 0
        if estimate + seams > self._config.max_context_tokens:
            excess = self._count_tokens(render_sources(context.sources)) - self._config.max_context_tokens
        if prompt_limit is not None and self._count_messages is not None and around + estimate + seams > prompt_limit:
            excess = max(excess, self._count_messages(context.messages) - prompt_limit)
        return excess

    def _source_tokens(self, title: str, text: str) -> int:
        # Always number 1, so that the same passage always counts the same.
        return self._count_tokens(render_source(Source(1, Passage("", "", text, 0.0, title))) + SOURCE_SEPARATOR)

    def _count_around(self, count_messages: CountMessages) -> int:
        """Tokens of a prompt without sources and question; the same for every request."""
        if self._tokens_around is None:
            prompts = self._config.prompts
            self._tokens_around = count_messages(prompt_messages("", (), prompts)) - self._count_tokens(
                prompts.no_sources
            )
        return self._tokens_around


class _Selection:
    """The passages taken, best first, and the sum of the tokens that each adds to the prompt."""

    def __init__(self, config: ContextConfig, count_source: CountSource) -> None:
        self._config = config
        self._count_source = count_source
        self._seen = NearDuplicates(config.near_duplicate_similarity)
        self.runs = Runs(config.merge_neighbours)
        self.tokens = 0

    def has_room(self, joining: Joining) -> bool:
        """Whether the sources stay within their number."""
        return len(self.runs) + 1 - joining.num_runs <= self._config.max_sources

    def count(self, passage: Passage, joining: Joining) -> int:
        """Tokens that `passage` adds: its own fence is spared for each run that it joins."""
        tokens = self._count_source(passage.title, joining.text)
        if joining.num_runs:
            tokens -= joining.num_runs * self._count_source(passage.title, "")
        return max(0, tokens)

    def take(self, passage: Passage, joining: Joining, tokens: int) -> None:
        """Take `passage`, unless it repeats a better one."""
        if self._config.drop_near_duplicates:
            # A chunk that overlaps its neighbour repeats it, too, but only until they are merged.
            if len(joining.text) < len(passage.text):
                self._seen.take(passage.text)
            elif not self._seen.take_if_new(passage.text):
                return
        self.runs.add(passage)
        self.tokens += tokens


def _select(passages: Iterable[Passage], config: ContextConfig, count_source: CountSource, budget: int) -> _Selection:
    """The best passages whose tokens, counted one by one, are within `budget`."""
    selection = _Selection(config, count_source)
    misses = 0
    for passage in passages:
        if misses == MAX_MISSES or selection.tokens >= budget:
            break
        joining = selection.runs.joining(passage)
        if not selection.has_room(joining):
            continue
        tokens = selection.count(passage, joining)
        if selection.tokens + tokens <= budget:
            selection.take(passage, joining, tokens)
        else:
            misses += 1
    return selection
