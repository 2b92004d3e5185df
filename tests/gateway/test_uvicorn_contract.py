"""What GuardedProtocol and GatewayServer use of uvicorn and httptools, none of it public: another version
fails here with the name of what changed, instead of in production."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path

import httptools
import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from pagefleet.api.gateway.http.http_protocol import GuardedProtocol

ROOT = Path(__file__).parents[2]
MINOR = "0.54"


def test_the_version_is_the_one_that_the_protocol_was_written_for():
    assert uvicorn.__version__.startswith(f"{MINOR}."), "re-check GuardedProtocol, then change this test"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"uvicorn>={MINOR},<0.{int(MINOR.partition('.')[2]) + 1}" in extras["gateway"]
    assert f"\nuvicorn=={MINOR}." in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (HttpToolsProtocol.__init__, ["self", "config", "server_state", "app_state", "_loop"]),
        (HttpToolsProtocol.connection_made, ["self", "transport"]),
        (HttpToolsProtocol.connection_lost, ["self", "exc"]),
        (HttpToolsProtocol.data_received, ["self", "data"]),
        (HttpToolsProtocol.on_message_begin, ["self"]),
        (HttpToolsProtocol.on_header, ["self", "name", "value"]),
        (HttpToolsProtocol.on_headers_complete, ["self"]),
        (HttpToolsProtocol.on_body, ["self", "body"]),
        (HttpToolsProtocol.on_message_complete, ["self"]),
        (HttpToolsProtocol.on_response_complete, ["self"]),
        (HttpToolsProtocol.send_400_response, ["self", "msg"]),
        (HttpToolsProtocol._unset_keepalive_if_required, ["self"]),
        (RequestResponseCycle.send, ["self", "message"]),
        (uvicorn.Server.capture_signals, ["self"]),
        (uvicorn.Server.serve, ["self", "sockets"]),
    ],
)
def test_signatures(function, parameters):
    assert list(inspect.signature(function).parameters) == parameters


def test_each_callback_that_is_overridden_exists_in_uvicorn():
    own = {
        name for name in vars(GuardedProtocol) if name.startswith(("on_", "connection_", "data_", "send_"))
    }
    assert own <= vars(HttpToolsProtocol).keys()


def test_data_received_does_nothing_else_than_what_guarded_protocol_repeats():
    source = inspect.getsource(HttpToolsProtocol.data_received)
    body = source[: source.index("except httptools.HttpParserError")]
    assert [line.strip() for line in body.splitlines() if line.strip()] == [
        "def data_received(self, data: bytes) -> None:",
        "self._unset_keepalive_if_required()",
        "try:",
        "self.parser.feed_data(data)",
    ]


def test_the_state_of_a_connection_has_these_names():
    source = inspect.getsource(HttpToolsProtocol)
    for use in (
        "self.parser = httptools.HttpRequestParser(self)",
        "self.parser.set_dangerous_leniencies(lenient_data_after_close=True)",
        "self.connections = server_state.connections",
        "self.connections.add(self)",
        "self.transport = transport",
        "self.loop = _loop or",
        "self.cycle: RequestResponseCycle = None",
        "on_response=self.on_response_complete",
        "self.url += url",
        "self.headers.append((name, value))",
        # Both are made anew for each message: the extensions of one are not those of the next.
        "self.headers = []",
        "self.scope = {  # type",
    ):
        assert use in source, use


def test_a_cycle_knows_how_far_its_response_is():
    source = inspect.getsource(RequestResponseCycle)
    for use in ("self.response_started = True", "self.response_complete = True", "self.on_response()"):
        assert use in source, use


def test_a_parser_reports_an_upgrade_with_the_offset_of_the_rest():
    for name in ("get_method", "should_upgrade", "set_dangerous_leniencies", "feed_data"):
        assert callable(getattr(httptools.HttpRequestParser, name)), name
    parser = httptools.HttpRequestParser(object())
    head = b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    with pytest.raises(httptools.HttpParserUpgrade) as raised:
        parser.feed_data(head + b"rest")
    assert raised.value.args == (len(head),)
