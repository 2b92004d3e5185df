"""The worker's own HTTP port, for Prometheus."""

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
    """Serves ``/metrics`` meanwhile, in threads of its own; gives the port, None where it is off.

    Raises: ConfigurationError, where the port cannot be had.
    """
    if settings.metrics_port is None:
        yield None
        return
    host = settings.metrics_host
    try:
        server, thread = start_http_server(settings.metrics_port, host, registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics_port: {host}:{settings.metrics_port} cannot be had ({error.strerror or error}); "
            "0 takes a free one."
        ) from error
    logger.info("metrics at http://%s:%d/metrics", host, server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
