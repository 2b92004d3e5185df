"""ServerEndpoint: port and password of a stack's Redis server, stored so that its URL survives restarts."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.workers.local.ports import check_port_free, free_port
from pagefleet.workers.local.secret_file import create_secret


@dataclass(frozen=True, slots=True)
class ServerEndpoint:
    """The port of the server on 127.0.0.1 and the password of its default user."""

    port: int
    password: str
    file: Path
    """The file with the URL; mode 0600."""

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @classmethod
    def kept_in(cls, home: Path) -> Self:
        """Read ``<home>/redis_url``; create it with a free port and a new password if it is missing.

        Raises:
            ConfigurationError: the file cannot be read, or contains a different kind of URL.
        """
        file = home / "redis_url"
        if not file.exists():
            create_secret(file, cls(free_port(), secrets.token_urlsafe(24), file).url + "\n")
        try:
            url = urlsplit(file.read_text(encoding="utf-8").strip())
            port, password = url.port, url.password
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"Cannot read {file} ({error}).") from None
        endpoint = cls(port or 0, password or "", file)
        if not port or not password or endpoint.url != url.geturl():
            raise ConfigurationError(
                f"{file} must contain redis://:PASSWORD@127.0.0.1:PORT/0; delete it to create a new one."
            )
        return endpoint

    def check_free(self) -> None:
        """Raise ConfigurationError if another process listens on the port; the message names it."""
        check_port_free(
            "127.0.0.1",
            self.port,
            f"Stop it, or delete {self.file} to use another port; clients then need the new URL.",
        )
