"""Who asks: the key of a request, and what it may touch."""

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
ANYBODY = ApiKey.model_construct(key_id="anybody", sha256="", tenant="")
"""Who asks a gateway without keys: no tenant, no limit."""


def authenticate(request: Request, keyring: Keyring | None) -> ApiKey:
    """Raises: ApiError: no key, or one that there isn't; RedisUnavailable."""
    if keyring is None:
        return ANYBODY
    token = _token(request)
    if not token:
        raise _refusal("You didn't provide an API key: send it as `Authorization: Bearer KEY`.", None)
    key = keyring.find(token)
    if key is None:
        raise _refusal("Incorrect API key provided.", "invalid_api_key")
    return key


def _token(request: Request) -> str:
    """Anthropic's header, which some clients send, if OpenAI's is not there."""
    if "authorization" not in request.headers:
        return request.headers.get("x-api-key", "").strip()
    scheme, _, token = request.headers["authorization"].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def tenant_of(key: ApiKey) -> str | None:
    return None if key is ANYBODY else key.tenant


def may_use(key: ApiKey, card: ModelCard) -> bool:
    return key.may_use({card.name, *card.aliases})


async def card_for(fleet: GatewayFleet, key: ApiKey, name: str | None) -> ModelCard:
    """The card of a model that the key may use; with None, of the only one there is.

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
            f"This API key does not have access to the model `{card.name}`.",
            param="model",
            code="model_not_found",
        )
    return card


def _no_model(name: str | None) -> ApiError:
    """Without the names of others, which the key may not use."""
    where = "`GET /v1/models` lists those that you can use"
    if name is None:
        message = f"model: it is missing, and there is not exactly one model; {where}."
    else:
        name = name[:_MAX_NAME_CHARS]
        message = f"The model `{name}` does not exist or you do not have access to it; {where}."
    return ApiError(404, message, param="model", code="model_not_found")


def _refusal(message: str, code: str | None) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": "Bearer"})
