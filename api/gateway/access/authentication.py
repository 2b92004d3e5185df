"""Authentication: the API key of a request, and the models that it can use."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from pagefleet.api.contract.errors import UnknownModel
from pagefleet.api.contract.messages import ModelCard
from pagefleet.api.gateway.access.api_keys import ApiKey
from pagefleet.api.gateway.access.keyring import Keyring
from pagefleet.api.gateway.fleet import GatewayFleet
from pagefleet.api.gateway.http.errors import ApiError

_MAX_NAME_CHARS: Final = 128
ANONYMOUS = ApiKey.model_construct(key_id="anonymous", sha256="", tenant="")
"""The key of all requests to a gateway without keys: it has no tenant and no limits."""


def authenticate(request: Request, keyring: Keyring | None) -> ApiKey:
    """Return the API key of a request.

    Raises:
        ApiError (401): the key is missing or unknown.
        RedisUnavailable: the keys have not been loaded yet.
    """
    if keyring is None:
        return ANONYMOUS
    token = _token(request)
    if not token:
        raise _refusal("The API key is missing; send it as `Authorization: Bearer KEY`.", None)
    key = keyring.find(token)
    if key is None:
        raise _refusal("The API key is unknown or revoked.", "invalid_api_key")
    return key


def _token(request: Request) -> str:
    """Return the token of OpenAI's header, or of Anthropic's, which some clients send instead."""
    if "authorization" not in request.headers:
        return request.headers.get("x-api-key", "").strip()
    scheme, _, token = request.headers["authorization"].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def tenant_of(key: ApiKey) -> str | None:
    return None if key is ANONYMOUS else key.tenant


def may_use(key: ApiKey, card: ModelCard) -> bool:
    return key.may_use({card.name, *card.aliases})


async def card_for(fleet: GatewayFleet, key: ApiKey, name: str | None) -> ModelCard:
    """Return the card of a model that the key can use. Without a name, it is the only model of the fleet.

    Raises:
        ApiError (403, 404), RedisUnavailable.
    """
    try:
        card = await fleet.card(name)
    except UnknownModel:
        raise _no_model(name) from None
    if not may_use(key, card):
        raise ApiError(
            403,
            f"This API key does not have access to the model `{card.name}`; GET /v1/models lists yours.",
            param="model",
            code="model_not_found",
        )
    return card


def _no_model(name: str | None) -> ApiError:
    """The message does not list models, because the key may not have access to them."""
    where = "`GET /v1/models` lists the models that you can use"
    if name is None:
        message = f"model: required, because the fleet does not have exactly one model; {where}."
    else:
        name = name[:_MAX_NAME_CHARS]
        message = f"The model `{name}` does not exist or you do not have access to it; {where}."
    return ApiError(404, message, param="model", code="model_not_found")


def _refusal(message: str, code: str | None) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": "Bearer"})
