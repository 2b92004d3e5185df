"""``pagefleet exporter``: export the queues and workers of a fleet to Prometheus."""

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
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9101,
    show_default=True,
    help="TCP port to listen on; 0 selects a free port.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 listens on all interfaces.",
)
@redis_option
def exporter(host: str, port: int, redis_url: str | None) -> None:
    """Export the metrics of the whole fleet to Prometheus.

    They are the depths of the queues, the ages of waiting jobs, and the numbers of workers and dead
    letters. The exporter runs until SIGTERM or Ctrl-C. Run one exporter per fleet; the rights of a
    monitor's Redis user are sufficient. Each worker serves its own metrics at its --metrics-port.

    \b
    Examples:
      pagefleet exporter
      pagefleet exporter --host 0.0.0.0 --redis-url rediss://monitor:PASSWORD@redis.internal:6379/0
    """
    # Imported late: it needs an extra.
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
        raise ConfigurationError(
            f"Cannot listen on {host}:{port} ({error.strerror or error}); change --host or --port."
        ) from error
    click.echo(f"Serving the metrics of the fleet at {safe_url(store.settings.url)}: ", nl=False, err=True)
    click.echo(f"http://{host}:{server.server_port}/metrics", err=True)
    while thread.is_alive() and not stop.wait(1.0):
        pass
    if not stop.is_set():
        raise ConfigurationError("The metrics server has failed; its error is above.")
    server.shutdown()
    server.server_close()
    thread.join()
    store.close_connections()
