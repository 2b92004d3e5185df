"""Gateway: the objects that all requests of a gateway process share, without any state of one request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import Request

from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.gateway.access.api_keys import ApiKey
from pagefleet.api.gateway.access.guard import key_of
from pagefleet.api.gateway.access.keyring import Keyring
from pagefleet.api.gateway.access.rate_limit import RateLimit, ReadLimit
from pagefleet.api.gateway.access.tenant_slots import TenantSlots
from pagefleet.api.gateway.fleet import GatewayFleet
from pagefleet.api.gateway.metrics import GatewayMetrics


@dataclass(frozen=True, slots=True)
class Gateway:
    settings: GatewaySettings
    fleet: GatewayFleet
    keyring: Keyring | None
    rate_limit: RateLimit
    metrics: GatewayMetrics
    reads: ReadLimit
    tenant_slots: TenantSlots
    leaving: asyncio.Future[None]
    """Done when the process must exit: open streams end, and their clients continue at another gateway."""


def gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.state.gateway
    return gateway


def caller_of(request: Request) -> tuple[Gateway, ApiKey]:
    """Return the gateway and the request's API key."""
    return gateway_of(request), key_of(request)


def reader_of(request: Request) -> tuple[Gateway, ApiKey]:
    """Like :func:`caller_of`, for requests that do not count against the key's requests per minute.

    Raises:
        ApiError (429): the key sends too many of them.
    """
    gateway, key = caller_of(request)
    gateway.reads.admit(key)
    return gateway, key
