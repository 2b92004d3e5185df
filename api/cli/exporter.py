"""``pagefleet exporter``: the fleet's queues and workers for Prometheus."""

from __future__ import annotations

import logging
import signal
import sys
import threading

import click

from pagefleet.api.cli.options import redis_option
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.api.protocol.connection import safe_url
from pagefleet.api.protocol.job_store import JobStore


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=9101, show_default=True, help="0: a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: every interface.")
@redis_option
def exporter(host: str, port: int, redis_url: str | None) -> None:
    """Serve the whole fleet's queue depths, ages and workers to Prometheus, until Ctrl-C. One is enough.

    A monitor's Redis user can do it. What each worker counts itself is at its own --metrics-port.

    \b
    pagefleet exporter
    pagefleet exporter --host 0.0.0.0 --port 9101 --redis-url rediss://monitor:...@redis:6379/0
    """
    # Only now: it comes with an extra.
    from prometheus_client import CollectorRegistry, start_http_server

    from pagefleet.api.operate.exporter import FleetCollector

    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    store = JobStore(FleetSettings.from_files(redis_url=redis_url))
    registry = CollectorRegistry()
    registry.register(FleetCollector(store))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigurationError(f"{host}:{port} cannot be had ({error.strerror or error}).") from error
    click.echo(f"metrics of the fleet at {safe_url(store.settings.url)}: ", nl=False, err=True)
    click.echo(f"http://{host}:{server.server_port}/metrics", err=True)
    while thread.is_alive() and not stop.wait(1.0):
        pass
    if not stop.is_set():
        raise ConfigurationError("The thread that serves the metrics has ended; its error is above.")
    server.shutdown()
    server.server_close()
    thread.join()
    store.close_connections()
