"""The composition root: names the deployments, binds them into the ingress, and builds the application."""

# No `from __future__ import annotations` here: Serve reads build_app's annotation at run time, and a string there
# would make it pass a plain dict instead of an AppConfig.

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.contracts import EmbeddingModel
from deployments.embedder import Embedder
from deployments.errors import StageUnavailable
from deployments.generator import Generator, generator_name
from deployments.indexer import Indexer
from deployments.models import model_location
from deployments.remote import (
    RemoteEmbedder,
    RemoteGenerator,
    RemoteIndexer,
    RemoteReranker,
    RemoteRetriever,
    readiness,
)
from deployments.reranker import Reranker, reranker_name
from deployments.retriever import Retriever
from deployments.token_counting import TokenCounter
from deployments.vllm_generator import build_token_counter, build_vllm_generator
from serve_app.api.app import create_api
from serve_app.api.services import Services
from serve_app.config import AppConfig
from serve_app.pipeline import Lane, Stages

logger = logging.getLogger(__name__)


class Ingress:
    """The HTTP front: one FastAPI app over the lane, in as many replicas as the load asks for."""

    def __init__(self, config: AppConfig, handles: Mapping[str, DeploymentHandle]) -> None:
        self._config = config
        self._handles = dict(handles)

    async def __serve_build_asgi_app__(self) -> Any:
        """Build the HTTP app inside the replica's running loop, as handles need one."""
        config, handles = self._config, self._handles
        embedder = RemoteEmbedder(handles["Embedder"], config.hops.embed)
        embedding_model = await _model_of(embedder)
        reranker = RemoteReranker(handles["Reranker"], config.hops.rerank)
        stages = Stages(
            embedder=embedder,
            retriever=RemoteRetriever(handles["Retriever"], config.hops.search),
            reranker=reranker,
            generator=RemoteGenerator(handles["Generator"]),
        )
        services = Services(
            lane=Lane(config.lane, config.context, stages, _token_counter(config)),
            indexer=RemoteIndexer(handles["Indexer"]),
            embedder=embedder,
            reranker=reranker,
            readiness=lambda: readiness(handles, config.http.readiness_timeout_s),
            embedding_model=embedding_model.name,
            reranker_model=reranker_name(config.reranker),
            generator_model=generator_name(config.generator),
            embedding_max_tokens=embedding_model.max_length_tokens,
            http=config.http,
        )
        # Serve returns the request id by itself.
        return create_api(services, echo_request_id=False)


async def _model_of(embedder: RemoteEmbedder) -> EmbeddingModel:
    """Ask until the embedder answers: it may be downloading its model, or waiting for a machine with a GPU."""
    while True:
        try:
            return await embedder.describe()
        except StageUnavailable as error:
            logger.info("waiting for the embedder: %s", error.message)
            await asyncio.sleep(1)


def _token_counter(config: AppConfig) -> Callable[[str], int]:
    """Counts with the generator's own tokenizer; the extractive answerer has none and borrows the embedder's."""
    if config.generator.vllm is not None:
        return build_token_counter(config.generator.vllm).count
    return TokenCounter(model_location(config.embedder.model)).count


def build_app(args: AppConfig) -> Application:
    """Build the application from its config: `import_path: serve_app:build_app` in a Serve config file."""
    embedder = _deploy(Embedder, 64, num_cpus=0.5).bind(args.embedder)
    nodes = {
        "Embedder": embedder,
        "Retriever": _deploy(Retriever, 64).bind(args.retriever, args.store),
        "Indexer": _deploy(Indexer, 16).bind(args.indexer, args.store, args.embedder.model, embedder),
        "Reranker": _deploy(Reranker, 64).bind(args.reranker, args.store, embedder),
        "Generator": _generator(args, embedder),
    }
    return _deploy(serve.ingress()(Ingress), 1024).bind(args, nodes)


def _generator(args: AppConfig, embedder: Application) -> Application:
    if args.generator.vllm is not None:
        return build_vllm_generator(args.generator.vllm, name="Generator")
    return _deploy(Generator, 256).bind(args.generator, args.store, embedder)


def _deploy(stage: type, max_ongoing_requests: int, num_cpus: float = 0.2) -> serve.Deployment:
    """A stage as a deployment under its class's name, sized as in deploy/local.yaml; a Serve file overrides it."""
    return serve.deployment(
        stage,
        name=stage.__name__,
        max_ongoing_requests=max_ongoing_requests,
        ray_actor_options={"num_cpus": num_cpus},
        # Serve replaces a replica after three failed checks; one with a dead engine should be gone within seconds.
        health_check_period_s=2,
        health_check_timeout_s=30,
    )


__all__ = ["build_app"]
