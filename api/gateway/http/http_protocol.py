"""GuardedProtocol: uvicorn's HTTP on httptools, with the limits that it has not: how many connections, how
large a request's head, how long it may take to come. Refusals are shaped as all the others are."""

from __future__ import annotations

import asyncio
import json
import socket
from http import HTTPStatus
from typing import Any, ClassVar, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.gateway.http.asgi_extensions import ABORT, WRITE
from pagefleet.api.gateway.http.errors import SERVER, ApiError

_SEND_BUFFER_BYTES: Final = 128 * 1024


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    settings: ClassVar[GatewaySettings]

    _num_head_bytes = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _offers_upgrade = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # The kernel would keep megabytes for a client that does not read.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        if len(self.connections) > self.settings.gateway_max_connections:
            message = "This server has too many connections; try again later."
            self._refuse(ApiError(503, message, kind=SERVER, code="overloaded"))
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._send_timer is not None:
            self._send_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        # What is no body: a head, or the trailers that may follow a body in chunks.
        self._num_head_bytes += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._num_head_bytes > self.settings.gateway_max_header_bytes:
            self._refuse_head()
        elif self._head_timer is None and self._awaits_rest():
            self._expect_head()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_as_http(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")

    def _go_on_as_http(self, rest: bytes) -> None:
        """Who offers another protocol, as Java's client does with each request, may be answered in this one.
        The parser would read no body behind such a head: a new one gets it again without the offer."""
        method = self.parser.get_method()
        if not self._offers_upgrade or method == b"CONNECT":
            self.send_400_response("")
            return
        offers = (b"upgrade", b"connection", b"http2-settings")
        headers = [name + b": " + value for name, value in self.headers if name not in offers]
        head = b"\r\n".join([method + b" " + self.url + b" HTTP/1.1", *headers, b"", b""])
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(head + rest)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._offers_upgrade = True, False
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]

    def on_header(self, name: bytes, value: bytes) -> None:
        # uvicorn would keep trailers, each of them, with the headers.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._num_head_bytes, self._in_head = 0, False
        self._stop_timer()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.settings.gateway_max_header_bytes:
            self._refuse_head()
            return
        self._offers_upgrade = self.parser.should_upgrade()
        if self._offers_upgrade:
            return
        super().on_headers_complete()
        cast(dict[str, Any], self.scope["extensions"])[WRITE] = self.cycle.send

    def on_body(self, body: bytes) -> None:
        self._num_head_bytes = 0
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        # The next request's head may come in the same data, and be counted with it: it begins anew.
        self._num_head_bytes, self._in_head = 0, True
        self._stop_timer()
        if self.cycle is not None and not self._offers_upgrade:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Anew with each: where nothing is taken, none comes to its end.
        if self._send_timer is not None:
            self._send_timer.cancel()
        self._watch_send()

    def _watch_send(self, before: int | None = None) -> None:
        """What of whole answers is not taken is not kept for ever: nor does closing wait for it."""
        left = self.transport.get_write_buffer_size()
        self._send_timer = None
        if before is not None and left >= before:
            self.transport.abort()
        elif left:
            most_s = self.settings.gateway_send_timeout_s
            self._send_timer = self.loop.call_later(most_s, self._watch_send, left)

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            self._refuse(ApiError(400, "This is no HTTP request.", code="invalid_http"))

    def _awaits_rest(self) -> bool:
        """Something has begun that nobody else waits for: uvicorn's own patience ends with the first byte."""
        has_begun = self._num_head_bytes > 0 or not self._in_head
        return has_begun and (self.cycle is None or self.cycle.response_complete)

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.settings.gateway_header_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._refuse(ApiError(408, "The request did not come in time.", code="request_timeout"))

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse_head(self) -> None:
        most = self.settings.gateway_max_header_bytes
        self._refuse(ApiError(431, f"The request's head may have {most} bytes.", code="headers_too_large"))

    def _refuse(self, error: ApiError) -> None:
        """Without the application, and then no more."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            # It would stand in the middle of another answer.
            self.transport.abort()
            return
        body = json.dumps(error.body).encode()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
        )
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()


def guarded(settings: GatewaySettings) -> type[asyncio.Protocol]:
    """The protocol with these limits."""
    values: dict[str, Any] = {"settings": settings}
    return type("GuardedProtocol", (GuardedProtocol,), values)
