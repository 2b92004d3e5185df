"""``GET /v1/models`` and ``/v1/models/{name}``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pagefleet.api.contract.messages import ModelCard
from pagefleet.api.gateway.access.authentication import card_for, may_use
from pagefleet.api.gateway.context import Gateway, reader_of


async def show_all(request: Request) -> Response:
    """List the models that the key can use, also those without a worker: their jobs wait for one."""
    gateway, key = reader_of(request)
    cards = [card for card in await gateway.fleet.models() if may_use(key, card)]
    served = await _served(gateway)
    return JSONResponse({"object": "list", "data": [_model_fields(card, served) for card in cards]})


async def show(request: Request) -> Response:
    gateway, key = reader_of(request)
    card = await card_for(gateway.fleet, key, request.path_params["name"])
    return JSONResponse(_model_fields(card, await _served(gateway)))


async def _served(gateway: Gateway) -> set[str]:
    return {worker.model for worker in await gateway.fleet.workers()}


def _model_fields(card: ModelCard, served: set[str]) -> dict[str, Any]:
    """Return a model in OpenAI's format. Cards have no date, so ``created`` is 0."""
    return {
        "id": card.name,
        "object": "model",
        "created": 0,
        "owned_by": "pagefleet",
        "root": card.name,
        "max_model_len": card.max_model_len,
        "aliases": card.aliases,
        "ready": card.name in served,
    }
