"""FlowerProcess: ``pagefleet flower`` of a local stack, with a login."""

from __future__ import annotations

import os
import secrets
from typing import Final, Self

from pagefleet.api.config.settings import FlowerSettings
from pagefleet.workers.local.child_process import ChildProcess
from pagefleet.workers.local.ports import choose_port
from pagefleet.workers.local.secret_file import create_secret

_USER: Final = "admin"


class FlowerProcess(ChildProcess):
    """Flower with basic authentication. Its output goes to a log file.

    Args:
        port: the TCP port; 0 selects a free one. None: the port of the settings, or a free one if that is in
            use.

    Raises:
        ConfigurationError: ``port`` is in use.
    """

    def __init__(self, redis_url: str, settings: FlowerSettings, port: int | None = None) -> None:
        host = settings.flower_address
        self.auth_file = settings.flower_auth_file or settings.home_dir / "flower_users"
        self._creates_auth_file = settings.flower_auth_file is None
        self.port = choose_port("flower_port", host, settings.flower_port, port)
        super().__init__(
            "flower",
            ["flower", "--address", host, "--port", str(self.port), "--auth-file", str(self.auth_file)],
            environment={**os.environ, "PAGEFLEET_REDIS_URL": redis_url},
            log_file=settings.home_dir / "flower.log",
        )
        self.url = f"http://{host}:{self.port}"

    def start(self) -> Self:
        """Start Flower. Create an auth file unless it exists or the settings name another."""
        if self._creates_auth_file:
            create_secret(self.auth_file, f"{_USER}:{secrets.token_urlsafe(16)}\n")
        return super().start()
