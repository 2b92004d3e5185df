"""EventStream: sends the events of a relay until they end, the client disconnects or the gateway exits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from pagefleet.api.gateway.answers.relay import Relay
from pagefleet.api.gateway.context import Gateway
from pagefleet.api.gateway.http import sse
from pagefleet.api.gateway.http.asgi_extensions import ABORT, WRITE


class EventStream(Response):
    """
    Args:
        on_gone: called if the client disconnects before the end or reads nothing for too long, with the time
            in seconds in which it can reconnect.
        on_end: called in every case.
    """

    def __init__(
        self,
        gateway: Gateway,
        relay: Relay,
        headers: Mapping[str, str],
        on_gone: Callable[[float], Awaitable[None]],
        on_end: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(headers={**sse.HEADERS, **headers})
        # The length is unknown.
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
        writer = _Writer(scope.get("extensions", {}).get(WRITE, send))
        relay = asyncio.ensure_future(self._relay.run(writer.write))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            slow = await self._wait(writer, {relay, gone, self._gateway.leaving})
            if relay.done():
                await self._raise_failure(relay, scope)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif slow or gone.done() or not self._relay.can_return:
                # Stop first: a running relay counts as a reader of the job.
                await _stop(relay)
                await self._on_gone(self._returns_within_s)
        finally:
            await _stop(relay, gone)
        if slow or self._gateway.leaving.done():
            _abort(scope)

    @property
    def _returns_within_s(self) -> float:
        return self._gateway.settings.gateway_return_within_s if self._relay.can_return else 0.0

    async def _raise_failure(self, relay: asyncio.Future[None], scope: Scope) -> None:
        if relay.exception() is not None:
            await self._on_gone(self._returns_within_s)
            _abort(scope)
        relay.result()

    async def _wait(self, writer: _Writer, any_of: set[asyncio.Future[Any]]) -> bool:
        """Wait until one of them is done. Return True instead if the client reads nothing for too long.

        There is one timer for the whole stream: a timer for each write would add a tenth to a token's cost.
        """
        most_s = self._gateway.settings.gateway_send_timeout_s
        while writer.blocked_s() < most_s:
            done, _ = await asyncio.wait(any_of, timeout=most_s / 2, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return False
        return True


class _Writer:
    """Sends bytes and measures how long a client has read nothing, so that a send is blocked."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._since: float | None = None

    async def write(self, data: bytes) -> None:
        if self._since is None:
            self._since = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._since = None

    def blocked_s(self) -> float:
        return 0.0 if self._since is None else time.monotonic() - self._since


async def _stop(*tasks: asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Wait until the client has disconnected."""
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


def _abort(scope: Scope) -> None:
    """Close the connection without an end, so that the client knows that the answer is incomplete."""
    abort = scope.get("extensions", {}).get(ABORT)
    if abort is not None:
        abort()
