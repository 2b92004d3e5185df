"""GatewayProcess: ``pagefleet serve`` of a local stack."""

from __future__ import annotations

import os
import ssl
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.contract.errors import FleetError
from pagefleet.workers.local.child_process import ChildProcess
from pagefleet.workers.local.ports import choose_port

_POLL_S: Final = 0.02
_ANY_CERTIFICATE: Final = ssl._create_unverified_context()
"""The readiness check sends no secret, and the certificate need not be for this address."""


class GatewayStartError(FleetError):
    """The gateway ended or did not answer in time."""

    code = "gateway_start"


class GatewayProcess(ChildProcess):
    """A gateway. Its output goes to a log file.

    Args:
        port: the TCP port; 0 selects a free one. None: the port of the settings, or a free one if that is in
            use.
        environment: further environment variables.

    Raises:
        ConfigurationError: ``port`` is in use.
    """

    def __init__(
        self,
        redis_url: str,
        settings: GatewaySettings,
        port: int | None = None,
        *,
        log_file: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        host = settings.gateway_host
        self.port = choose_port("gateway_port", host, settings.gateway_port, port)
        super().__init__(
            "gateway",
            ["serve", "--host", host, "--port", str(self.port)],
            environment={**os.environ, "REDIS_URL": redis_url, **(environment or {})},
            log_file=log_file or settings.home_dir / "gateway.log",
        )
        scheme = "http" if settings.gateway_tls_cert is None else "https"
        self.url = f"{scheme}://{host}:{self.port}"

    def wait_ready(self, timeout_s: float = 30.0) -> Self:
        """Wait until the gateway answers. Raises: GatewayStartError: it ended, or did not answer in time."""
        deadline = time.monotonic() + timeout_s
        # Check the process first: another gateway may have the port and answer.
        while self.exit_status is not None or not self._answers():
            if self.exit_status is not None or time.monotonic() > deadline:
                raise GatewayStartError(f"The gateway does not answer: {self.log_tail()}")
            time.sleep(_POLL_S)
        return self

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1, context=_ANY_CERTIFICATE) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False
