"""What all requests of one gateway process share. Nothing of it is a request's state."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import Request

from pagefleet.api.client.async_client import AsyncFleetClient
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.gateway.access.api_keys import ApiKey, Finder
from pagefleet.api.gateway.access.authentication import authenticate
from pagefleet.api.gateway.access.rate_limit import RateLimit, ReadLimit
from pagefleet.api.gateway.access.turns import Turns
from pagefleet.api.gateway.metrics import GatewayMetrics


@dataclass(frozen=True, slots=True)
class Gateway:
    settings: GatewaySettings
    fleet: AsyncFleetClient
    keyring: Finder | None
    rate_limit: RateLimit
    metrics: GatewayMetrics
    reads: ReadLimit
    turns: Turns
    leaving: asyncio.Future[None]
    """Done when this process has no more time: what still streams ends, and its client goes on elsewhere."""


def gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.state.gateway
    return gateway


def who_reads(request: Request) -> tuple[Gateway, ApiKey]:
    """Of requests that cost nothing of a key's minute. Raises: ApiError (401, 429)."""
    gateway, key = who_asks(request)
    gateway.reads.admit(key)
    return gateway, key


def who_asks(request: Request) -> tuple[Gateway, ApiKey]:
    """Raises: ApiError (401)."""
    gateway = gateway_of(request)
    return gateway, authenticate(request, gateway.keyring)
