"""GET /v1/models: every collection is a model that one can chat with; the embedder and the reranker are listed too."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from deployments.errors import InvalidInput, NotFound
from serve_app.api.openai_shapes import ModelCard, ModelList
from serve_app.api.services import Services, services_of
from serve_app.api.wire import JsonResponse, JsonRoute

CHAT_MODEL = "raglane"
OWNER = "raglane"

router = APIRouter(route_class=JsonRoute, tags=["openai"])

_STARTED_AT = int(time.time())


@router.get("/v1/models", response_model=ModelList)
async def list_models(request: Request) -> Response:
    """The models that can be asked for."""
    return JsonResponse(ModelList("list", await _cards(services_of(request))))


@router.get("/v1/models/{model_id:path}", response_model=ModelCard)
async def get_model(model_id: str, request: Request) -> Response:
    """One model by its name."""
    for card in await _cards(services_of(request)):
        if card.id == model_id:
            return JsonResponse(card)
    raise _unknown(model_id)


def collection_of(model: str, named: str | None, default: str) -> str:
    """The collection behind a chat model's name and a body's `collection`; raises NotFound for other models."""
    if model == CHAT_MODEL:
        return named or default
    prefix, _, collection = model.partition("/")
    if prefix != CHAT_MODEL or not collection:
        raise _unknown(model)
    if named is not None and named != collection:
        raise InvalidInput(f"model {model!r} and collection {named!r} disagree; leave one of them out")
    return collection


async def _cards(services: Services) -> list[ModelCard]:
    def card(name: str, root: str, max_model_len: int | None = None) -> ModelCard:
        return ModelCard(name, "model", _STARTED_AT, OWNER, root, max_model_len)

    collections = sorted(info.name for info in await services.indexer.list_collections())
    chat = [card(name, services.generator_model) for name in (CHAT_MODEL, *(f"{CHAT_MODEL}/{c}" for c in collections))]
    embedder = card(services.embedding_model, services.embedding_model, services.embedding_max_tokens)
    return [*chat, embedder, card(services.reranker_model, services.reranker_model)]


def _unknown(model: str) -> NotFound:
    return NotFound(f"there is no model {model!r}; GET /v1/models lists those there are")
