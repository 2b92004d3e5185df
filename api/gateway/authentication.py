"""Who asks: the key of a request, and what it may touch."""

from __future__ import annotations

from starlette.requests import Request

from pagefleet.api.gateway.api_keys import ApiKey, Finder
from pagefleet.api.gateway.errors import ApiError
from pagefleet.api.messages import ModelCard

ANYBODY = ApiKey.model_construct(key_id="anybody", sha256="", tenant="")
"""Who asks a gateway without keys: no tenant, no limit."""


def authenticate(request: Request, keyring: Finder | None) -> ApiKey:
    """Raises: ApiError: no key, or one that there isn't; RedisUnavailable."""
    if keyring is None:
        return ANYBODY
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise _refusal("You didn't provide an API key: send it as `Authorization: Bearer KEY`.", None)
    key = keyring.find(token.strip())
    if key is None:
        raise _refusal("Incorrect API key provided.", "invalid_api_key")
    return key


def tenant_of(key: ApiKey) -> str | None:
    return None if key is ANYBODY else key.tenant


def may_use(key: ApiKey, card: ModelCard) -> bool:
    return key.may_use({card.name, *card.aliases})


def check_model(key: ApiKey, card: ModelCard) -> None:
    """Raises: ApiError."""
    if not may_use(key, card):
        raise ApiError(
            403,
            f"This API key does not have access to the model `{card.name}`.",
            param="model",
            code="model_not_found",
        )


def _refusal(message: str, code: str | None) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": "Bearer"})
