"""``pagefleet health``: check that a worker is alive, for health checks of containers and services."""

from __future__ import annotations

import socket

import click

from pagefleet.api.cli.options import redis_option
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.protocol.job_store import JobStore


@click.command()
@click.option(
    "--host", default=None, metavar="NAME", help="Host of the worker. Default: the name of this host."
)
@click.option("--pid", type=int, help="Process id of the worker. Default: any worker on the host.")
@redis_option
def health(redis_url: str | None, host: str | None, pid: int | None) -> None:
    """Check that a worker on this host is alive.

    The exit status is 0 if a worker holds a lease, else 1. The engine's loop renews the lease, so a worker
    whose engine hangs loses it even though its process is alive. A worker that is loading its model or cannot
    reach Redis does not hold a lease either.

    \b
    Examples:
      pagefleet health              for the only worker of a container
      pagefleet health --pid 4711   for one of several workers on a host
    """
    host = host or socket.gethostname()
    store = JobStore(FleetSettings.from_files(redis_url=redis_url))
    try:
        workers = [worker for worker in store.workers() if worker.host == host and pid in (None, worker.pid)]
    finally:
        store.close_connections()
    if not workers:
        process = "" if pid is None else f" with pid {pid}"
        raise click.ClickException(
            f"No worker on {host}{process} holds a lease: "
            "it is loading, hangs, has ended, or cannot reach Redis."
        )
    for worker in workers:
        click.echo(f"{worker.worker_id} serves {worker.model}: {worker.num_running} running")
