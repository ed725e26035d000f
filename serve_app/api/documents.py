"""/v1/documents and /v1/collections: what is stored."""

from __future__ import annotations

import hashlib
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from deployments.contracts import CollectionInfo, Document
from deployments.errors import TooLarge
from serve_app.api.limits import deadline_of
from serve_app.api.schemas import (
    CollectionBody,
    CollectionDeleted,
    CollectionParam,
    CollectionsResponse,
    DocumentBody,
    DocumentDeleted,
    DocumentResponse,
    DocumentsBody,
    IndexResponse,
)
from serve_app.api.services import Services, request_id_of, services_of
from serve_app.api.wire import JsonResponse, JsonRoute

router = APIRouter(route_class=JsonRoute, tags=["documents"])


@router.post("/v1/documents", response_model=IndexResponse, responses={422: {"model": IndexResponse}})
async def index_documents(body: DocumentsBody, request: Request) -> Response:
    """Index documents; one with an id that is stored already replaces it. 422 if every document was rejected."""
    services = services_of(request)
    at_most = services.http.max_documents_per_request
    if len(body.documents) > at_most:
        raise TooLarge(f"documents has {len(body.documents)} documents; send at most {at_most} at a time")
    deadline = deadline_of(body.timeout_s, services.lane.config, services.http.index_timeout_s)
    started = time.perf_counter()
    documents = [_document(document) for document in body.documents]
    report = await services.indexer.index(_collection(body, services), documents, deadline.remaining_s())
    response = IndexResponse(
        indexed=report.indexed,
        replaced=report.replaced,
        chunks=report.num_chunks,
        sentences=report.num_sentences,
        tokens=report.num_tokens,
        rejected=report.rejected,
        elapsed_s=time.perf_counter() - started,
        request_id=request_id_of(request.scope),
    )
    return JsonResponse(response, status_code=200 if report.indexed else 422)


@router.get("/v1/documents/{document_id:path}", response_model=DocumentResponse)
async def get_document(document_id: str, where: Annotated[CollectionParam, Query()], request: Request) -> Response:
    """A stored document. Slashes in its id may stand as they are."""
    services = services_of(request)
    collection = _collection(where, services)
    stored = await services.indexer.get_document(collection, document_id)
    document = stored.document
    response = DocumentResponse(
        id=document.id,
        collection=collection,
        text=document.text,
        title=document.title,
        source=document.source,
        metadata=document.metadata,
        num_chunks=stored.num_chunks,
        indexed_at=stored.indexed_at,
        request_id=request_id_of(request.scope),
    )
    return JsonResponse(response)


@router.delete("/v1/documents/{document_id:path}", response_model=DocumentDeleted)
async def delete_document(document_id: str, where: Annotated[CollectionParam, Query()], request: Request) -> Response:
    """Delete a document with all of its chunks."""
    services = services_of(request)
    collection = _collection(where, services)
    num_chunks = await services.indexer.delete_document(collection, document_id)
    return JsonResponse(DocumentDeleted(document_id, collection, num_chunks, request_id_of(request.scope)))


@router.get("/v1/collections", response_model=CollectionsResponse)
async def list_collections(request: Request) -> Response:
    """All collections and what they hold."""
    collections = sorted(await services_of(request).indexer.list_collections(), key=lambda info: info.name)
    return JsonResponse(CollectionsResponse(collections, request_id_of(request.scope)))


@router.post("/v1/collections", response_model=CollectionInfo, status_code=201)
async def create_collection(body: CollectionBody, request: Request) -> Response:
    """Create an empty collection."""
    return JsonResponse(await services_of(request).indexer.create_collection(body.name), status_code=201)


@router.delete("/v1/collections/{name}", response_model=CollectionDeleted)
async def delete_collection(name: str, request: Request) -> Response:
    """Delete a collection with all of its documents."""
    await services_of(request).indexer.delete_collection(name)
    return JsonResponse(CollectionDeleted(name, request_id_of(request.scope)))


def _collection(where: DocumentsBody | CollectionParam, services: Services) -> str:
    return where.collection or services.lane.config.default_collection


def _document(body: DocumentBody) -> Document:
    # The same text sent twice without an id is one document, not two.
    document_id = body.id or hashlib.sha256(body.text.encode()).hexdigest()
    return Document(document_id, body.text, body.title, body.source, body.metadata)
