"""Free TCP ports for the processes of a local stack."""

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
    """Return a free port of this host.

    It is below the range from which the kernel assigns ports, so that no outgoing connection takes it before
    the caller listens on it.
    """
    while True:
        port = _FIRST_PORT + secrets.randbelow(_NUM_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def check_port_free(host: str, port: int, advice: str) -> None:
    """Raise ConfigurationError if ``host:port`` is in use. The message ends in ``advice``."""
    problem = _why_unusable(host, port)
    if problem is not None:
        raise ConfigurationError(f"Port {port} of {host} is used by {_listener(port)} ({problem}). {advice}")


def _listener(port: int) -> str:
    """Describe the process that listens on ``port``, if this user is allowed to see it."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            on_port = getattr(connection.laddr, "port", None) == port
            if on_port and connection.status == psutil.CONN_LISTEN and connection.pid is not None:
                return f"{psutil.Process(connection.pid).name()}, pid {connection.pid}"
    return "another process"


def choose_port(setting: str, host: str, usual: int, wanted: int | None) -> int:
    """Return the port to listen on.

    Args:
        setting: the name of the port in the error message.
        usual: the port if ``wanted`` is None; if it is in use, a free one is returned.
        wanted: the requested port; 0 selects a free one.

    Raises:
        ConfigurationError: the requested port is in use.
    """
    port = usual if wanted is None else wanted
    problem = _why_unusable(host, port)
    if problem is None and port != 0:
        return port
    if wanted:
        raise ConfigurationError(
            f"{setting}: cannot listen on {host}:{wanted} ({problem}); 0 selects a free port."
        )
    return free_port()


def _why_unusable(host: str, port: int) -> str | None:
    try:
        with socket.create_server((host, port)):
            return None
    except OSError as error:
        return error.strerror or str(error)
