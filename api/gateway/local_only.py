"""LocalOnly: a gateway without keys answers to its own names only.

A page from anywhere may have its own name point to 127.0.0.1 (DNS rebinding), and would then be this
gateway's own origin to the visitor's browser. The name stands in ``Host``.
"""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pagefleet.api.gateway.errors import ApiError


class LocalOnly:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_local(_host(Headers(scope=scope).get("host", ""))):
            refusal = ApiError(403, "This address is not that of this gateway.", code="unknown_host")
            await refusal.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)


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
