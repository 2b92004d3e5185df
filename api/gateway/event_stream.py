"""EventStream: a response that writes a relay's events until they, the client or this process end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from pagefleet.api.gateway import sse
from pagefleet.api.gateway.context import Gateway
from pagefleet.api.gateway.relay import Relay

ABORT = "pagefleet.abort"
"""The extension of a scope that drops its connection at once (http_protocol.py)."""


class EventStream(Response):
    """
    Args:
        on_gone: what to do when the client is gone before the end, or takes nothing for too long.
        on_end: what to do in every case.
    """

    def __init__(
        self,
        gateway: Gateway,
        relay: Relay,
        headers: Mapping[str, str],
        on_gone: Callable[[], Awaitable[None]],
        on_end: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(headers={**sse.HEADERS, **headers})
        # The length is not known.
        del self.headers["content-length"]
        self._gateway = gateway
        self._relay = relay
        self._on_gone = on_gone
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway.metrics.streams.inc()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._run(scope, receive, send)
        finally:
            self._gateway.metrics.streams.dec()
            await self._on_end()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        relay = asyncio.ensure_future(self._relay.run(_Writer(send, self._gateway).write))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({relay, gone, self._gateway.leaving}, return_when=asyncio.FIRST_COMPLETED)
            slow = relay.done() and isinstance(relay.exception(), TimeoutError)
            if relay.done() and not slow:
                relay.result()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif slow or gone.done():
                await self._on_gone()
        finally:
            for task in (relay, gone):
                task.cancel()
            await asyncio.gather(relay, gone, return_exceptions=True)
        if slow or self._gateway.leaving.done():
            _abort(scope)


class _Writer:
    """Sends bytes; a client that takes none for too long is given up, since what it does not take is kept
    here for it."""

    def __init__(self, send: Send, gateway: Gateway) -> None:
        self._send = send
        self._timeout_s = gateway.settings.gateway_send_timeout_s

    async def write(self, data: bytes) -> None:
        """Raises: TimeoutError."""
        async with asyncio.timeout(self._timeout_s):
            await self._send({"type": "http.response.body", "body": data, "more_body": True})


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


def _abort(scope: Scope) -> None:
    """Not an end: without one the client knows that it has not had all."""
    abort = scope.get("extensions", {}).get(ABORT)
    if abort is not None:
        abort()
