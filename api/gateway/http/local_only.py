"""LocalOnly: a gateway without API keys serves only requests that name this machine.

A foreign web page can make its own host name resolve to 127.0.0.1 (DNS rebinding); the visitor's browser then
allows it to read the gateway's responses. ``Host`` contains that name. Any page can also send requests whose
response it need not read, for example to cancel a job. ``Origin`` contains the name of the page.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pagefleet.api.gateway.http.errors import ApiError

_MAX_CHARS: Final = 128


class LocalOnly:
    """
    Args:
        origins: other origins that are allowed.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str] = ()) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        if refusal is not None:
            await refusal.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_local(_host(host)):
            return ApiError(
                403,
                f"Host `{host[:_MAX_CHARS]}` is not allowed: without API keys the gateway accepts local host "
                "names only. Set gateway_keys_file or gateway_keys_redis (see `pagefleet keys add`), or "
                "gateway_open.",
                code="unknown_host",
            )
        if origin is None or origin in self._origins or is_local(_origin_host(origin)):
            return None
        return ApiError(
            403,
            f"Origin `{origin[:_MAX_CHARS]}` is not allowed; add it to gateway_cors_origins.",
            code="unknown_origin",
        )


def is_local(host: str) -> bool:
    """Return whether a host name always means this machine. Addresses cannot be rebound."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "")


def _host(value: str) -> str:
    """Return the ``Host`` header without the port."""
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0].lower()


def _origin_host(origin: str) -> str:
    """Return the origin's host name, or ``null``, which is also the origin of a sandboxed page."""
    try:
        return urlsplit(origin).hostname or "null"
    except ValueError:
        return "null"
