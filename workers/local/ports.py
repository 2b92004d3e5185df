"""Ports for what `pagefleet up` starts beside its workers."""

from __future__ import annotations

import contextlib
import secrets
import socket
from typing import Final

import psutil

from pagefleet.api.contract.errors import ConfigurationError

_FIRST_PORT: Final = 20_000
_NUM_PORTS: Final = 12_000


def free_port() -> int:
    """A port of this host that nobody listens on.

    Below those that the kernel gives out itself: until its user listens there, no connection takes it.
    """
    while True:
        port = _FIRST_PORT + secrets.randbelow(_NUM_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def check_port_free(host: str, port: int, advice: str) -> None:
    """Raise ConfigurationError if ``host:port`` is taken; the message names by what, then ``advice``."""
    problem = _why_taken(host, port)
    if problem is not None:
        raise ConfigurationError(f"Port {port} of {host} is taken by {_listener(port)} ({problem}). {advice}")


def _listener(port: int) -> str:
    """The process that listens on ``port``, as far as this user may know."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            on_port = getattr(connection.laddr, "port", None) == port
            if on_port and connection.status == psutil.CONN_LISTEN and connection.pid is not None:
                return f"{psutil.Process(connection.pid).name()}, pid {connection.pid}"
    return "another process"


def take_port(setting: str, host: str, usual: int, wanted: int | None) -> int:
    """
    Args:
        setting: what the port is called in the complaint.
        usual: where nobody asked for one; a free one where somebody has it.
        wanted: what was asked for; 0 is a free one.

    Raises:
        ConfigurationError: somebody has the port that was asked for.
    """
    port = usual if wanted is None else wanted
    problem = _why_taken(host, port)
    if problem is None and port != 0:
        return port
    if wanted:
        raise ConfigurationError(f"{setting}: {host}:{wanted} cannot be had ({problem}); 0 takes a free one.")
    return free_port()


def _why_taken(host: str, port: int) -> str | None:
    try:
        with socket.create_server((host, port)):
            return None
    except OSError as error:
        return error.strerror or str(error)
