"""The composition root: names the deployments, binds them into the ingress, and builds the application."""

# No `from __future__ import annotations` here: Serve reads build_app's annotation at run time, and a string there
# would make it pass a plain dict instead of an AppConfig.

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.context import ContextBuilder
from deployments.contracts import EmbeddingModel, Generates, Reranks
from deployments.embedder import Embedder
from deployments.embedding_cache import CachedEmbedder
from deployments.errors import NotFound, StageError, StageUnavailable
from deployments.exporter import export
from deployments.generator import FALLBACK, Generator, coalesces, generator_name, has_fallback
from deployments.in_process import InProcessAnswerer, InProcessHandle, InProcessReranker
from deployments.indexer import Indexer
from deployments.llm_rewriting import LlmRewriter
from deployments.models import model_location
from deployments.prompts import Messages, rewrite_messages
from deployments.remote import (
    Handle,
    RemoteAnswerer,
    RemoteEmbedder,
    RemoteGenerator,
    RemoteIndexer,
    RemoteReranker,
    RemoteRetriever,
    readiness,
)
from deployments.replica import settle
from deployments.reranker import Reranker, reranker_name, scores_are_absolute
from deployments.retriever import Retriever
from deployments.tally import LaneTally, RequestTally, SilentTally
from deployments.telemetry import CACHE_BYTES, CACHE_LOOKUPS, INDEX_COVERAGE, INGRESS, Reading
from deployments.token_counting import TokenCounter
from deployments.vllm_generator import build_token_counter, build_vllm_generator
from serve_app.api.app import create_api
from serve_app.api.observation import Observer
from serve_app.api.services import Services
from serve_app.config import AppConfig
from serve_app.lane_config import DEPLOYMENT_OF, InProcessStage
from serve_app.pipeline import Lane
from serve_app.retrieval import Stages
from serve_app.stage_figures import StagesReport
from serve_app.stage_reporter import StageReporter
from serve_app.tracing import build_request_spans

if TYPE_CHECKING:
    from serve_app.spans import RequestSpans

logger = logging.getLogger(__name__)

# Counts the rows of every collection.
_ASK_COVERAGE_S = 10.0

# The ways to a stage: each counts what did not come back.
_WAYS = (
    RemoteEmbedder,
    RemoteRetriever,
    RemoteReranker,
    RemoteAnswerer,
    RemoteGenerator,
    InProcessReranker,
    InProcessAnswerer,
)

# A collector that does not answer may hold up a shutdown for so long.
_LAST_SPANS_S = 5.0


class Ingress:
    """The HTTP front: one FastAPI app over the lane, in as many replicas as the load asks for."""

    # Serve calls __del__ also where __init__ failed.
    _spans: "RequestSpans | None" = None

    def __init__(self, config: AppConfig, handles: Mapping[str, DeploymentHandle]) -> None:
        self._config = config
        self._handles = dict(handles)
        self._inside: dict[str, Any] = {}
        self._spans = build_request_spans(config.tracing, _whereabouts())

    def check_health(self) -> None:
        """Raise when a stage in this process is dead, so that Serve replaces this replica."""
        for stage in self._inside.values():
            InProcessHandle(stage).check_health()

    async def __serve_build_asgi_app__(self) -> Any:
        """Build the HTTP app inside the replica's running loop, as handles need one."""
        config = self._config
        self._inside = _stages_inside(config, self._handles["Embedder"])
        handles = {**self._handles, **{name: InProcessHandle(stage) for name, stage in self._inside.items()}}
        embedder = RemoteEmbedder(handles["Embedder"], config.hops.embed, config.embedder.model)
        embedding_model = await _model_of(embedder)
        reranker = self._reranker()
        generator = self._generator(handles["Generator"])
        cached_embedder = CachedEmbedder(embedder, embedding_model.name, config.lane.embedding_cache)
        retriever = RemoteRetriever(handles["Retriever"], config.hops.search)
        stages = Stages(
            embedder=cached_embedder,
            retriever=retriever,
            reranker=reranker,
            generator=generator,
            fallback=_generator_by(handles[FALLBACK], config, True) if FALLBACK in handles else None,
            rewriter=_rewriter(config, generator),
            samples=config.generator.vllm is not None,
            embedding_model=embedding_model.name,
        )
        lane = Lane(config.lane, _context_builder(config), stages, prompt_limit(config))
        indexer = RemoteIndexer(handles["Indexer"])
        coverage = _Coverage(indexer)
        counts = config.telemetry.enabled
        if counts:
            # The loop keeps no task alive that nobody holds.
            self._asking = asyncio.create_task(coverage.keep_asking())
        tally, requests = LaneTally() if counts else SilentTally(), RequestTally()
        called = (embedder, retriever, reranker, generator, stages.fallback)
        ways = [stage.read for stage in called if isinstance(stage, _WAYS)]
        lifetime = export(
            config.telemetry,
            INGRESS,
            tally.read,
            requests.read,
            coverage.read,
            lambda: _read_caches(cached_embedder, lane),
            *ways,
        )
        ours = serve.get_replica_context()
        reporter = StageReporter(ours.app_name, ours.replica_tag, lifetime.seconds, config.http.stages_patience_s)
        services = Services(
            lane=lane,
            indexer=indexer,
            embedder=embedder,
            reranker=reranker,
            readiness=lambda: readiness(handles, config.http.readiness_timeout_s),
            report_stages=reporter.report if counts else _no_report,
            embedding_model=embedding_model.name,
            reranker_model=reranker_name(config.reranker),
            generator_model=generator_name(config.generator),
            embedding_max_tokens=embedding_model.max_length_tokens,
            http=config.http,
            rerank_in_parts=scores_are_absolute(config.reranker),
            tally=tally,
        )
        # Serve returns the request id by itself.
        observers = [_counting(requests)] if counts else []
        if self._spans is not None:
            observers.append(self._spans)
        settle()
        return create_api(services, observers=observers, echo_request_id=False)

    def _reranker(self) -> Reranks:
        inside = self._inside.get("Reranker")
        if inside is not None:
            return InProcessReranker(inside)
        return RemoteReranker(self._handles["Reranker"], self._config.hops.rerank)

    def _generator(self, handle: Handle) -> Generates:
        inside = self._inside.get("Generator")
        if inside is not None and coalesces(self._config.generator):
            return InProcessAnswerer(inside)
        return _generator_by(handle, self._config, is_engine=self._config.generator.vllm is None)

    async def __del__(self) -> None:
        """Serve awaits this when the last request is over, and then kills the replica without any exit handler."""
        if self._spans is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(self._spans.shutdown), _LAST_SPANS_S)


def _whereabouts() -> dict[str, str]:
    """Where this replica runs, as attributes of an OpenTelemetry resource."""
    return {
        "service.instance.id": serve.get_replica_context().replica_tag,
        "host.name": socket.gethostname(),
        "ray.node_id": ray.get_runtime_context().get_node_id(),
    }


def _stages_inside(config: AppConfig, embedder: DeploymentHandle) -> dict[str, Any]:
    """The stages that this process runs itself, under the names of the deployments that they stand for."""
    model = config.embedder.model
    make: dict[InProcessStage, Callable[[], Any]] = {
        "search": lambda: Retriever(config.retriever, config.store, config.telemetry),
        "rerank": lambda: Reranker(config.reranker, config.store, embedder, config.telemetry, model),
        "generate": lambda: Generator(config.generator, config.store, embedder, config.telemetry, model),
    }
    return {DEPLOYMENT_OF[stage]: make[stage]() for stage in config.lane.in_process}


def _generator_by(handle: Handle, config: AppConfig, is_engine: bool) -> RemoteAnswerer | RemoteGenerator:
    if is_engine and coalesces(config.generator):
        return RemoteAnswerer(handle, config.hops.generate)
    return RemoteGenerator(handle)


async def _no_report(window_s: float) -> StagesReport:
    raise NotFound("this server counts nothing (telemetry.enabled is false), so there is no latency report")


def _counting(requests: RequestTally) -> Observer:
    return lambda record: requests.add(record.endpoint, record.outcome, record.seconds)


def _read_caches(embedder: CachedEmbedder, lane: Lane) -> Iterator[Reading]:
    """What telemetry exports of the caches of this replica. A text that another request computes just now is a hit."""
    vectors, answers = embedder.stats(), lane.answer_cache_stats()
    yield CACHE_LOOKUPS, ("embedding", "hit"), vectors.hits + vectors.joined
    yield CACHE_LOOKUPS, ("embedding", "miss"), vectors.misses
    yield CACHE_BYTES, ("embedding",), vectors.num_bytes
    yield CACHE_LOOKUPS, ("answer", "hit"), answers.hits
    yield CACHE_LOOKUPS, ("answer", "miss"), answers.misses
    yield CACHE_BYTES, ("answer",), answers.num_bytes


class _Coverage:
    """How far the indexes cover their collections, as the Indexer said last."""

    def __init__(self, indexer: RemoteIndexer) -> None:
        self._indexer = indexer
        self._known: Mapping[str, Mapping[str, float]] = {}

    async def keep_asking(self) -> None:
        """Ask for as long as this replica lives."""
        while True:
            try:
                self._known = await self._indexer.coverage()
            except StageError as error:
                self._known = {}
                logger.info("the coverage of the indexes is not known: %s", error.message)
            await asyncio.sleep(_ASK_COVERAGE_S)

    def read(self) -> Iterator[Reading]:
        """What telemetry exports of it."""
        for collection, indexes in self._known.items():
            for index, share in indexes.items():
                yield INDEX_COVERAGE, (collection, index), share


async def _model_of(embedder: RemoteEmbedder) -> EmbeddingModel:
    """Ask until the embedder answers: it may be downloading its model, or waiting for a machine with a GPU."""
    while True:
        try:
            return await embedder.describe()
        except StageUnavailable as error:
            logger.info("waiting for the embedder: %s", error.message)
            await asyncio.sleep(1)


def _rewriter(config: AppConfig, generator: Generates) -> LlmRewriter | None:
    rewriting = config.lane.llm_rewriting
    if not rewriting.enabled:
        return None

    def messages(question: str, history: Sequence[str]) -> Messages:
        return rewrite_messages(question, history, rewriting.max_queries, config.context.prompts)

    return LlmRewriter(generator, rewriting, messages)


def _context_builder(config: AppConfig) -> ContextBuilder:
    """Counts with the generator's own tokenizer; the extractive answerer has none and borrows the embedder's."""
    if config.generator.vllm is None:
        return ContextBuilder(config.context, TokenCounter(model_location(config.embedder.model)).count)
    counter = build_token_counter(config.generator.vllm)
    return ContextBuilder(config.context, counter.count, counter.count_messages)


def prompt_limit(config: AppConfig) -> Callable[[int | None], int | None]:
    """How many tokens a prompt may have, by the `max_tokens` of its answer; None where no limit is known."""
    vllm = config.generator.vllm
    max_model_len = vllm.engine_kwargs.get("max_model_len") if vllm is not None else None
    reserved = config.context.reserved_answer_tokens

    def limit(max_tokens: int | None) -> int | None:
        return max_model_len - (max_tokens or reserved) if isinstance(max_model_len, int) else None

    return limit


def build_app(args: AppConfig) -> Application:
    """Build the application from its config: `import_path: serve_app:build_app` in a Serve config file."""
    embedder = _deploy(Embedder, 64, num_cpus=0.5).bind(args.embedder, args.telemetry)
    nodes = {
        "Embedder": embedder,
        "Indexer": _deploy(Indexer, 256).bind(args.indexer, args.store, args.embedder.model, embedder, args.telemetry),
    }
    if "search" not in args.lane.in_process:
        nodes["Retriever"] = _deploy(Retriever, 64).bind(args.retriever, args.store, args.telemetry)
    if "rerank" not in args.lane.in_process:
        nodes["Reranker"] = _deploy(Reranker, 64).bind(
            args.reranker, args.store, embedder, args.telemetry, args.embedder.model
        )
    if "generate" not in args.lane.in_process:
        nodes["Generator"] = _generator(args, embedder)
    if has_fallback(args.generator):
        nodes[FALLBACK] = _deploy(Generator, 256, name=FALLBACK).bind(
            args.generator, args.store, embedder, args.telemetry, args.embedder.model
        )
    return _deploy(serve.ingress()(Ingress), 1024).bind(args, nodes)


def _generator(args: AppConfig, embedder: Application) -> Application:
    if args.generator.vllm is not None:
        return build_vllm_generator(args.generator.vllm, name="Generator", telemetry=args.telemetry)
    return _deploy(Generator, 256).bind(args.generator, args.store, embedder, args.telemetry, args.embedder.model)


def _deploy(stage: type, max_ongoing_requests: int, num_cpus: float = 0.2, name: str = "") -> serve.Deployment:
    """A stage as a deployment under its class's name, sized as in deploy/local.yaml; a Serve file overrides it."""
    return serve.deployment(
        stage,
        name=name or stage.__name__,
        max_ongoing_requests=max_ongoing_requests,
        ray_actor_options={"num_cpus": num_cpus},
        # Serve replaces a replica after three failed checks; one with a dead engine should be gone within seconds.
        health_check_period_s=2,
        health_check_timeout_s=30,
    )


__all__ = ["build_app"]
