"""The application: routes, what stands around them, and what lives as long as the process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, TypedDict

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pagefleet.api.client.async_client import AsyncFleetClient
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.gateway import health
from pagefleet.api.gateway.access.api_keys import Finder, Keyring
from pagefleet.api.gateway.access.rate_limit import RateLimit, ReadLimit
from pagefleet.api.gateway.access.redis_keys import RedisKeyring
from pagefleet.api.gateway.access.turns import Turns
from pagefleet.api.gateway.context import Gateway
from pagefleet.api.gateway.http.errors import HANDLERS
from pagefleet.api.gateway.http.local_only import LocalOnly
from pagefleet.api.gateway.jobs import job_list, jobs
from pagefleet.api.gateway.metrics import GatewayMetrics
from pagefleet.api.gateway.openai import chat_completions, completions, models, openapi, tokenize
from pagefleet.api.gateway.page import page

ROUTES: Final = [
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
    Route("/", page.show),
    Route("/page/{name}", page.part),
    Route("/health", health.health),
    Route("/ready", health.ready),
    Route("/metrics", health.metrics),
    Route("/openapi.json", openapi.show),
]


_EXPOSED: Final = (
    *("x-pagefleet-job", "x-pagefleet-ignored", "retry-after"),
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining") for of in ("requests", "tokens")),
)


class _State(TypedDict):
    gateway: Gateway


def make_app(settings: GatewaySettings, leaving: asyncio.Future[None] | None = None) -> Starlette:
    """
    Args:
        leaving: see :class:`Gateway`; by default this process never leaves.

    Raises:
        ConfigurationError: the file of keys cannot be read.
    """
    keyring = _keyring(settings)
    metrics = GatewayMetrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[_State]:
        fleet = AsyncFleetClient(settings)
        rate_limit = RateLimit(fleet)
        # Redis may come later: until then /ready says so, and requests get a 503.
        with contextlib.suppress(RedisUnavailable):
            await fleet.open()
        until = asyncio.get_running_loop().create_future() if leaving is None else leaving
        async with _following(keyring, fleet):
            reads = ReadLimit(settings.gateway_reads_per_s)
            yield {"gateway": Gateway(settings, fleet, keyring, rate_limit, metrics, reads, Turns(), until)}
        await rate_limit.close()
        await fleet.close()

    middleware = [Middleware(_Slashless), Middleware(_Counted, metrics=metrics)]
    if keyring is None and not settings.gateway_open:
        middleware.append(Middleware(LocalOnly, origins=settings.gateway_cors_origins))
    if settings.gateway_cors_origins:
        middleware.append(Middleware(CORSMiddleware, **_cors(settings)))
    app = Starlette(routes=ROUTES, middleware=middleware, exception_handlers=HANDLERS, lifespan=lifespan)
    # It would send whoever asks to the host that the request names, before any key was seen: _Slashless takes
    # a slash at the end for none.
    app.router.redirect_slashes = False
    return app


def _keyring(settings: GatewaySettings) -> Finder | None:
    if settings.gateway_keys_redis:
        return RedisKeyring()
    return None if settings.gateway_keys_file is None else Keyring(settings.gateway_keys_file)


@contextlib.asynccontextmanager
async def _following(keyring: Finder | None, fleet: AsyncFleetClient) -> AsyncIterator[None]:
    """Keys that stand in Redis are looked at again and again; the others at a request."""
    if not isinstance(keyring, RedisKeyring):
        yield
        return
    with contextlib.suppress(RedisUnavailable):
        await keyring.look(fleet)
    following = asyncio.create_task(keyring.follow(fleet))
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def _cors(settings: GatewaySettings) -> Mapping[str, Any]:
    return {
        "allow_origins": settings.gateway_cors_origins,
        "allow_methods": ["GET", "POST", "DELETE"],
        # Any: which ones a client sends is its maker's choice (`x-stainless-*`, `openai-organization`,
        # `traceparent`). The origins above are who may ask at all, and no cookies come with a request: a page
        # can put nothing into a header that it does not know itself.
        "allow_headers": ["*"],
        "expose_headers": _EXPOSED,
    }


class _Slashless:
    """``/v1/models/`` is ``/v1/models``. A slash that belongs to a job's id is sent as ``%2F``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["raw_path"].endswith(b"/"):
            scope = {**scope, "path": scope["path"][:-1], "raw_path": scope["raw_path"][:-1]}
        await self._app(scope, receive, send)


class _Counted:
    """Counts each request by its route and status, once it is answered."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun_at, status = time.monotonic(), 499

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = _route_of(scope)
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - begun_at)


def _route_of(scope: Scope) -> str:
    """The pattern, never the path: that is the client's."""
    endpoint = scope.get("endpoint")
    return next((route.path for route in ROUTES if route.endpoint is endpoint), "none")
