"""The stages as seen from another process: Ray Serve handles that speak the verbs, and Ray's failures as our errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

from msgspec.structs import replace
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

from deployments import telemetry
from deployments.contracts import (
    PRIORITIES,
    Call,
    CollectionInfo,
    Document,
    EmbeddingModel,
    Embeddings,
    EmbedRequest,
    GenerateRequest,
    GenerationEvent,
    IndexReport,
    Priority,
    RerankRequest,
    SearchRequest,
    SearchResult,
    StoredDocument,
    Timed,
    Vector,
)
from deployments.errors import DeadlineExceeded, EngineFailed, Overloaded, RaglaneError, StageError, StageUnavailable
from deployments.hop import Hop, HopConfig
from deployments.tally import DropTally
from deployments.telemetry import Reading

# Estimates for the size of a call: a vector of 1,024 float32 values, and a passage of 256 tokens with its metadata.
_VECTOR_BYTES = 4096
_PASSAGE_BYTES = 2048
# What travels is of importable classes: cloudpickle, which Serve would use, takes three times as long over it.
_PICKLED = {"request_serialization": "pickle", "response_serialization": "pickle"}


def _bytes_of(texts: Sequence[str]) -> int:
    # Characters stand in for bytes: counting bytes would mean encoding every text once more.
    return sum(map(len, texts))


class Handle(Protocol):
    """A Ray Serve DeploymentHandle, or anything that is called like one."""

    def options(self, **options: Any) -> Any: ...

    def __getattr__(self, method: str) -> Any: ...


def translate(error: BaseException, stage: str) -> RaglaneError:
    """What a failure of a handle call means to the lane. The text of a remote error never reaches a message."""
    if isinstance(error, RaglaneError) and not isinstance(error, RayTaskError):
        return error
    if isinstance(error, RayTaskError):
        # str() of this one is the remote traceback; the object that was raised is its cause.
        cause = error.cause
        while isinstance(cause, RayTaskError):
            # It came through another stage before.
            cause = cause.cause
        if isinstance(cause, RaglaneError):
            return cause
        if isinstance(cause, BackPressureError):
            return Overloaded(f"the {stage} stage has as much to do as it takes; try again later")
        return EngineFailed(f"the {stage} stage failed ({type(cause).__name__}); its log has the details")
    if isinstance(error, BackPressureError):
        return Overloaded(f"the {stage} stage has as much to do as it takes; try again later")
    if isinstance(error, RayActorError | DeploymentUnavailableError):
        return StageUnavailable(f"the {stage} stage lost the replica that was working on this; try again")
    if isinstance(error, RequestCancelledError | TaskCancelledError | asyncio.CancelledError):
        return StageUnavailable(f"the {stage} stage dropped this call")
    return StageUnavailable(f"the {stage} stage can't be reached ({type(error).__name__})")


@contextmanager
def _translating(stage: str) -> Iterator[None]:
    """Failures of a handle inside the block leave it as ours."""
    try:
        yield
    except asyncio.CancelledError as error:
        # A call that was cancelled elsewhere raises the same bare CancelledError as our own cancellation.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise translate(error, stage) from None
    except Exception as error:  # noqa: BLE001 - translate has a meaning for every one of them
        raise translate(error, stage) from None


class _Response:
    """A handle's response whose failures are ours."""

    def __init__(self, response: Any, stage: str) -> None:
        self._response = response
        self._stage = stage

    def __await__(self) -> Any:
        return self._result().__await__()

    async def _result(self) -> Any:
        with _translating(self._stage):
            return await self._response

    def cancel(self) -> None:
        self._response.cancel()

    async def within(self, timeout_s: float) -> Any:
        """The answer, or TimeoutError; a call that is given up is cancelled, which an answer that has come survives."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self
        finally:
            self.cancel()


def _caller(handle: Handle, method: str, stage: str) -> Callable[[list[Call[Any]]], Any]:
    remote = getattr(handle.options(**_PICKLED), method)
    return lambda calls: _Response(remote.remote(calls), stage)


class RemoteEmbedder:
    """The Embedder by handle. Bulk requests have calls of their own: a question never travels with a thousand texts.

    With `model`, as it stands in the config (`embedder.model`), only replicas that run that model count as there.
    """

    def __init__(self, handle: Handle, config: HopConfig | None = None, model: str = "") -> None:
        self._handle = handle
        self._model = model
        self._hops: dict[Priority, Hop[EmbedRequest, Embeddings]] = {
            priority: Hop("embed", _caller(handle, "embed", "embed"), config or HopConfig()) for priority in PRIORITIES
        }

    async def embed(self, request: EmbedRequest, budget_s: float) -> Timed[Embeddings]:
        size_bytes = _bytes_of(request.texts) + len(request.texts) * _VECTOR_BYTES
        if self._model and not request.model:
            request = replace(request, model=self._model)
        return await self._hops[request.priority](request, budget_s, size_bytes)

    def read(self) -> Iterator[Reading]:
        """What telemetry exports of the way to this stage."""
        for hop in self._hops.values():
            yield from hop.read()

    def dropped(self) -> Iterator[Reading]:
        """Of that, the items that did not come back: gauges of two ways in one process would overwrite each other."""
        return (reading for reading in self.read() if reading[0] is telemetry.DROPPED)

    async def describe(self) -> EmbeddingModel:
        """The model that the stage runs. Raises StageUnavailable while it has no replica that answers."""
        try:
            response = _Response(self._handle.describe.remote(self._model), "embed")
            return cast(EmbeddingModel, await response.within(_READ_S))
        except TimeoutError:
            raise StageUnavailable("the embed stage does not answer; it may be starting") from None


class RemoteRetriever:
    """The Retriever by handle."""

    def __init__(self, handle: Handle, config: HopConfig) -> None:
        self._searches: Hop[SearchRequest, SearchResult] = Hop("search", _caller(handle, "search", "search"), config)
        self._versions: Hop[str, int] = Hop("search", _caller(handle, "version", "search"), config)

    async def search(self, request: SearchRequest, budget_s: float) -> Timed[SearchResult]:
        asked_bytes = _bytes_of([request.text]) + (0 if request.vector is None else _VECTOR_BYTES)
        if request.filter:
            asked_bytes += len(repr(request.filter))
        return await self._searches(request, budget_s, asked_bytes + request.k * _PASSAGE_BYTES)

    async def version(self, collection: str, budget_s: float) -> Timed[int]:
        return await self._versions(collection, budget_s)

    def read(self) -> Iterator[Reading]:
        """What telemetry exports of the way to this stage."""
        yield from self._searches.read()
        yield from self._versions.read()


class RemoteReranker:
    """The Reranker by handle. Bulk requests have calls of their own."""

    def __init__(self, handle: Handle, config: HopConfig) -> None:
        self._hops: dict[Priority, Hop[RerankRequest, Vector]] = {
            priority: Hop("rerank", _caller(handle, "rerank", "rerank"), config) for priority in PRIORITIES
        }

    async def rerank(self, request: RerankRequest, budget_s: float) -> Timed[Vector]:
        size_bytes = _VECTOR_BYTES + _bytes_of([candidate.text for candidate in request.candidates])
        return await self._hops[request.priority](request, budget_s, size_bytes)

    def read(self) -> Iterator[Reading]:
        """What telemetry exports of the way to this stage."""
        for hop in self._hops.values():
            yield from hop.read()


class RemoteGenerator:
    """The Generator by handle. A stream has a call of its own: coalescing would hold its first token back."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle.options(stream=True, **_PICKLED)
        self._dropped = DropTally("generate")

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        """The generator's events. Closing the iterator cancels the remote generation; no event after `budget_s`."""
        stream = self._handle.generate.remote(request)
        loop = asyncio.get_running_loop()
        expires_at = loop.time() + request.budget_s
        try:
            while True:
                async with asyncio.timeout_at(expires_at):
                    with _translating("generate"):
                        event = await anext(stream, None)
                if event is None:
                    return
                yield event
        except TimeoutError:
            late = DeadlineExceeded("the generate stage did not finish in time; raise timeout_s or lower max_tokens")
            self._dropped.add(late.reason)
            raise late from None
        except StageError as error:
            # vLLM counts none of them for us.
            if error.reason != "refused":
                self._dropped.add(error.reason)
            raise
        finally:
            # Dropping the iterator stops nothing by itself: the replica keeps generating until it is told to stop.
            stream.cancel()

    def read(self) -> Iterator[Reading]:
        """What telemetry exports of the way to this stage."""
        yield from self._dropped.read()


class RemoteAnswerer:
    """A Generator whose engine answers within milliseconds, by handle: what waits for it travels in one call.

    A stream of its own would cost each answer more than the answering.
    """

    def __init__(self, handle: Handle, config: HopConfig) -> None:
        self._hop: Hop[GenerateRequest, tuple[GenerationEvent, ...]] = Hop(
            "generate", _caller(handle, "answer", "generate"), config
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        """The generator's events, all of them once it is done. Closing the iterator before that gives the answer up."""
        # A source's text travels in the messages as well.
        size_bytes = 2 * _bytes_of([source.passage.text for source in request.sources])
        for event in (await self._hop(request, request.budget_s, size_bytes)).value:
            yield event

    def read(self) -> Iterator[Reading]:
        """What telemetry exports of the way to this stage."""
        yield from self._hop.read()


class RemoteIndexer:
    """The Indexer by handle. Documents travel by reference: they may be larger than one message between replicas."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle.options(_by_reference=True)

    async def index(self, collection: str, documents: Sequence[Document], budget_s: float) -> IndexReport:
        return cast(IndexReport, await self._ask(budget_s, "index", collection, list(documents), budget_s))

    async def get_document(self, collection: str, document_id: str) -> StoredDocument:
        return cast(StoredDocument, await self._ask(_READ_S, "get_document", collection, document_id))

    async def delete_document(self, collection: str, document_id: str) -> int:
        return cast(int, await self._ask(_WRITE_S, "delete_document", collection, document_id))

    async def create_collection(self, name: str) -> CollectionInfo:
        return cast(CollectionInfo, await self._ask(_WRITE_S, "create_collection", name))

    async def list_collections(self) -> list[CollectionInfo]:
        return cast(list[CollectionInfo], await self._ask(_READ_S, "list_collections"))

    async def delete_collection(self, name: str) -> None:
        await self._ask(_WRITE_S, "delete_collection", name)

    async def coverage(self) -> dict[str, dict[str, float]]:
        """For each collection and each of its indexes, the share of the chunks that the index covers."""
        return cast(dict[str, dict[str, float]], await self._ask(_READ_S, "coverage"))

    async def _ask(self, within_s: float, method: str, *arguments: Any) -> Any:
        try:
            return await _Response(getattr(self._handle, method).remote(*arguments), "index").within(within_s)
        except TimeoutError:
            raise DeadlineExceeded(f"the index stage did not answer within {within_s:g} s") from None


_READ_S = 30.0
# A write waits for the writes before it.
_WRITE_S = 300.0


async def readiness(handles: dict[str, Handle], timeout_s: float) -> dict[str, str]:
    """For each stage `ready`, or why it is not."""

    async def ask(handle: Handle) -> str:
        try:
            await _Response(handle.describe.remote(), "asked").within(timeout_s)
        except TimeoutError:
            return f"no answer within {timeout_s:g} s: starting, restarting or overloaded"
        except RaglaneError as error:
            return error.message
        return "ready"

    answers = await asyncio.gather(*(ask(handle) for handle in handles.values()))
    return dict(zip(handles, answers, strict=True))
