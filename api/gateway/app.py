"""The ASGI application: its routes, its middleware, and the objects that live as long as the process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, TypedDict

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.gateway import health
from pagefleet.api.gateway.access.api_keys import KeyStore
from pagefleet.api.gateway.access.guard import RequireKey
from pagefleet.api.gateway.access.key_file import KeyFile
from pagefleet.api.gateway.access.keyring import Keyring
from pagefleet.api.gateway.access.rate_limit import RateLimit, ReadLimit
from pagefleet.api.gateway.access.redis_keys import RedisKeys
from pagefleet.api.gateway.access.tenant_slots import TenantSlots
from pagefleet.api.gateway.context import Gateway
from pagefleet.api.gateway.fleet import GatewayFleet
from pagefleet.api.gateway.http.errors import HANDLERS
from pagefleet.api.gateway.http.local_only import LocalOnly
from pagefleet.api.gateway.jobs import job_list, jobs
from pagefleet.api.gateway.metrics import GatewayMetrics
from pagefleet.api.gateway.openai import chat_completions, completions, models, openapi, tokenize
from pagefleet.api.gateway.page import page

_FILES: Final = page.PageFiles()
PUBLIC: Final[list[Route | Mount]] = [
    Route("/", _FILES.index),
    Mount("/page", _FILES),
    Route("/health", health.health),
    Route("/ready", health.ready),
    Route("/metrics", health.metrics),
    Route("/openapi.json", openapi.show),
]
"""The routes that need no API key. Every other route needs one, also a route that is added later."""
ROUTES: Final[list[Route | Mount]] = [
    Route("/v1/chat/completions", chat_completions.create, methods=["POST"]),
    Route("/v1/completions", completions.create, methods=["POST"]),
    Route("/v1/models", models.show_all),
    Route("/v1/models/{name:path}", models.show),
    Route("/v1/jobs", job_list.show_all),
    Route("/v1/jobs/{job_id:path}/stream", jobs.stream),
    Route("/v1/jobs/{job_id:path}/cancel", jobs.cancel, methods=["POST"]),
    Route("/v1/jobs/{job_id:path}", jobs.show),
    Route("/v1/jobs/{job_id:path}", jobs.delete, methods=["DELETE"]),
    Route("/tokenize", tokenize.tokenize, methods=["POST"]),
    Route("/detokenize", tokenize.detokenize, methods=["POST"]),
    *PUBLIC,
]


def pattern_of(route: Route | Mount) -> str:
    """Return the path of a route with its parameters in braces."""
    return route.path_format if isinstance(route, Mount) else route.path


_PATTERNS: Final = [
    (pattern_of(each), each.app if isinstance(each, Mount) else each.endpoint) for each in ROUTES
]
_EXPOSED: Final = (
    *("x-pagefleet-job", "x-pagefleet-ignored", "retry-after"),
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining") for of in ("requests", "tokens")),
)


class _State(TypedDict):
    gateway: Gateway


def make_app(settings: GatewaySettings, leaving: asyncio.Future[None] | None = None) -> Starlette:
    """Return the application.

    Args:
        leaving: see :class:`Gateway`; by default it is never done.

    Raises:
        ConfigurationError: the key file cannot be read.
    """
    keyring = _load_keyring(settings)
    metrics = GatewayMetrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[_State]:
        fleet = GatewayFleet(settings)
        rate_limit = RateLimit(fleet)
        # The gateway starts without Redis: /ready reports it, and requests get a 503.
        with contextlib.suppress(RedisUnavailable):
            await fleet.open()
        until = asyncio.get_running_loop().create_future() if leaving is None else leaving
        async with _following(keyring):
            reads, slots = ReadLimit(settings.gateway_reads_per_s), TenantSlots()
            yield {"gateway": Gateway(settings, fleet, keyring, rate_limit, metrics, reads, slots, until)}
        await rate_limit.close()
        await fleet.close()

    middleware = [Middleware(_StripSlash), Middleware(_CountRequests, metrics=metrics)]
    if keyring is None and not settings.gateway_open:
        middleware.append(Middleware(LocalOnly, origins=settings.gateway_cors_origins))
    if settings.gateway_cors_origins:
        middleware.append(Middleware(CORSMiddleware, **_cors(settings)))
    middleware.append(Middleware(RequireKey, keyring=keyring, public=PUBLIC))
    app = Starlette(routes=ROUTES, middleware=middleware, exception_handlers=HANDLERS, lifespan=lifespan)
    # Starlette would redirect to the host that the request names, which a client can forge. _StripSlash makes
    # redirects unnecessary.
    app.router.redirect_slashes = False
    return app


def _load_keyring(settings: GatewaySettings) -> Keyring | None:
    """Raises: ConfigurationError."""
    store: KeyStore | None = None
    if settings.gateway_keys_redis:
        store = RedisKeys(settings)
    elif settings.gateway_keys_file is not None:
        store = KeyFile(settings.gateway_keys_file)
    if store is None:
        return None
    keyring = Keyring(store)
    with contextlib.suppress(RedisUnavailable):
        keyring.load()
    return keyring


@contextlib.asynccontextmanager
async def _following(keyring: Keyring | None) -> AsyncIterator[None]:
    if keyring is None:
        yield
        return
    following = asyncio.create_task(keyring.follow())
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        keyring.close()


def _cors(settings: GatewaySettings) -> Mapping[str, Any]:
    return {
        "allow_origins": settings.gateway_cors_origins,
        "allow_methods": ["GET", "POST", "DELETE"],
        # Clients send headers of their own (`x-stainless-*`, `openai-organization`, `traceparent`). Allowing
        # any header is safe: only the origins above are allowed, and requests carry no cookies.
        "allow_headers": ["*"],
        "expose_headers": _EXPOSED,
    }


class _StripSlash:
    """Handles ``/v1/models/`` like ``/v1/models``. A slash at the end of a job's id is sent as ``%2F``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["raw_path"].endswith(b"/"):
            scope = {**scope, "path": scope["path"][:-1], "raw_path": scope["raw_path"][:-1]}
        await self._app(scope, receive, send)


class _CountRequests:
    """Counts each request by route and status when its response ends."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun_at, status = time.monotonic(), 499

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        finally:
            route = _route_of(scope)
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - begun_at)


def _route_of(scope: Scope) -> str:
    """Return the route's pattern. The path itself is never a label, because clients choose it."""
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return "none"
    return next((path for path, each in _PATTERNS if each is endpoint), "none")
