"""The HTTP server for a worker's metrics."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.workers.settings import WorkerSettings

logger = logging.getLogger(__name__)


@contextmanager
def served_metrics(settings: WorkerSettings, registry: CollectorRegistry) -> Iterator[int | None]:
    """Serve ``/metrics`` in background threads inside the ``with`` block.

    Yields:
        The port; None if ``metrics_port`` is not set.

    Raises:
        ConfigurationError: the server cannot listen on the port.
    """
    if settings.metrics_port is None:
        yield None
        return
    host = settings.metrics_host
    try:
        server, thread = start_http_server(settings.metrics_port, host, registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics_port: cannot listen on {host}:{settings.metrics_port} ({error.strerror or error}). "
            "Use another port, or 0 for any free port."
        ) from error
    logger.info("metrics at http://%s:%d/metrics", host, server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
