"""GuardedProtocol: uvicorn's httptools protocol with limits that uvicorn does not have.

They bound the number of connections, and the size and the time of a request's header. Errors have the format
of all others. It uses private state of uvicorn (tests/gateway/test_uvicorn_contract.py).
"""

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
    """One connection of a client."""

    settings: ClassVar[GatewaySettings]

    _num_head_bytes = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _offers_upgrade = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # The kernel would buffer megabytes for a client that does not read.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        if len(self.connections) > self.settings.gateway_max_connections:
            message = "The server has too many connections; retry later."
            self._refuse(ApiError(503, message, kind=SERVER, code="overloaded"))
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._send_timer is not None:
            self._send_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        # Counts the bytes outside of bodies: headers, and trailers after a chunked body.
        self._num_head_bytes += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._num_head_bytes > self.settings.gateway_max_header_bytes:
            self._refuse_head()
        elif self._head_timer is None and self._awaits_rest():
            self._start_timer()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Answer a request that offers an upgrade, as Java's client always does, with HTTP/1.1. The parser
        does not read the body after such a header, so a new parser gets the header without the offer."""
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
        # uvicorn would add trailers to the headers, without a limit.
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
        # The header of the next request may be in the same data: its count starts at zero.
        self._num_head_bytes, self._in_head = 0, True
        self._stop_timer()
        if self.cycle is not None and not self._offers_upgrade:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Restart the timer: a response that completes proves that the client reads.
        if self._send_timer is not None:
            self._send_timer.cancel()
        self._watch_send()

    def _watch_send(self, before: int | None = None) -> None:
        """Close the connection if the client has read nothing of complete responses for the send timeout."""
        left = self.transport.get_write_buffer_size()
        self._send_timer = None
        if before is not None and left >= before:
            self.transport.abort()
        elif left:
            most_s = self.settings.gateway_send_timeout_s
            self._send_timer = self.loop.call_later(most_s, self._watch_send, left)

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            self._refuse(ApiError(400, "The request is not valid HTTP.", code="invalid_http"))

    def _awaits_rest(self) -> bool:
        """Return whether a request is incomplete. uvicorn's keep-alive timeout ends with the first byte."""
        has_begun = self._num_head_bytes > 0 or not self._in_head
        return has_begun and (self.cycle is None or self.cycle.response_complete)

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.settings.gateway_header_timeout_s, self._on_timeout)

    def _on_timeout(self) -> None:
        timeout_s = self.settings.gateway_header_timeout_s
        self._refuse(
            ApiError(408, f"The request was not received within {timeout_s:g} s.", code="request_timeout")
        )

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse_head(self) -> None:
        most = self.settings.gateway_max_header_bytes
        self._refuse(
            ApiError(
                431, f"The request header is larger than the limit of {most} bytes.", code="headers_too_large"
            )
        )

    def _refuse(self, error: ApiError) -> None:
        """Send an error without the application, then close the connection."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            # The error would appear in the middle of another response.
            self.transport.abort()
            return
        body = json.dumps(error.body).encode()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
        )
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()


def protocol_class(settings: GatewaySettings) -> type[asyncio.Protocol]:
    """Return the protocol class with these settings."""
    values: dict[str, Any] = {"settings": settings}
    return type("GuardedProtocol", (GuardedProtocol,), values)
