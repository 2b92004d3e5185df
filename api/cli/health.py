"""``pagefleet health``: whether a worker of this machine or container is alive; for health checks."""

from __future__ import annotations

import socket

import click

from pagefleet.api.cli.options import redis_option
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.protocol.job_store import JobStore


@click.command()
@click.option("--host", default=None, metavar="NAME", help="Of which host.  [default: this one's name]")
@click.option("--pid", type=int, help="Of which process; by default any on that host.")
@redis_option
def health(redis_url: str | None, host: str | None, pid: int | None) -> None:
    """Exit 0 if a worker of this host holds a lease, 1 if not, with one sentence.

    The lease is kept up by the engine's loop: a worker whose engine is stuck loses it, although its process
    lives. A worker that still loads its model, or that cannot reach Redis, has none either.

    \b
    pagefleet health                  in a container: its only worker
    pagefleet health --pid 4711       one of several on a machine
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
            f"No worker on {host}{process} holds a lease: it is loading, stuck, cut off or gone."
        )
    for worker in workers:
        click.echo(f"{worker.worker_id} serves {worker.model}: {worker.num_running} running")
