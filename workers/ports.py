"""Ports for what `pagefleet up` starts beside its workers."""

from __future__ import annotations

import socket

from pagefleet.api.errors import ConfigurationError
from pagefleet.workers.redis_server import free_port


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
