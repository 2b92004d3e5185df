"""LocalOnly: a gateway without keys answers to its own names only.

A page from anywhere may have its own name point to 127.0.0.1 (DNS rebinding), and would then be this
gateway's own origin to the visitor's browser. The name stands in ``Host``. A page of somebody else's can send
what needs no answer, as an order to cancel a job, wherever it likes: its name stands in ``Origin``.
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
        origins: from where others may ask all the same.
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
                f"Host `{host[:_MAX_CHARS]}` is not allowed: without API keys a gateway answers to names of "
                "its own machine only. Set gateway_keys_file (see `pagefleet keys add`) or gateway_open.",
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
    """Whether a name can mean this host alone. An address can: a browser takes it for no other's name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "")


def _host(value: str) -> str:
    """Without the port."""
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0].lower()


def _origin_host(origin: str) -> str:
    """A name that is nobody's where it has none: a sandboxed page's origin is ``null``."""
    try:
        return urlsplit(origin).hostname or "null"
    except ValueError:
        return "null"
