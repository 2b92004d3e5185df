"""FlowerProcess: ``pagefleet flower`` beside a local stack, for whoever knows the password."""

from __future__ import annotations

import os
import secrets
from typing import Final, Self

from pagefleet.api.config.settings import FlowerSettings
from pagefleet.workers.local.child_process import ChildProcess
from pagefleet.workers.local.ports import take_port
from pagefleet.workers.local.secret_file import create_secret

_USER: Final = "admin"


class FlowerProcess(ChildProcess):
    """With basic authentication, on this machine's own address. It says little, and that to a log file.

    Args:
        port: 0 takes a free one; so does None where somebody has the settings' port.

    Raises:
        ConfigurationError: somebody has the port.
    """

    def __init__(self, redis_url: str, settings: FlowerSettings, port: int | None = None) -> None:
        host = settings.flower_address
        self.auth_file = settings.flower_auth_file or settings.home_dir / "flower_users"
        self._makes_auth_file = settings.flower_auth_file is None
        self.port = take_port("flower_port", host, settings.flower_port, port)
        super().__init__(
            "flower",
            ["flower", "--address", host, "--port", str(self.port), "--auth-file", str(self.auth_file)],
            environment={**os.environ, "PAGEFLEET_REDIS_URL": redis_url},
            log_file=settings.home_dir / "flower.log",
        )
        self.url = f"http://{host}:{self.port}"

    def start(self) -> Self:
        """Makes a password first, where the user named no file of their own and there is none yet."""
        if self._makes_auth_file:
            create_secret(self.auth_file, f"{_USER}:{secrets.token_urlsafe(16)}\n")
        return super().start()
