"""``pagefleet up``: a local stack in the foreground, until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Sequence
from typing import Final

import click

from pagefleet.api.cli.options import redis_option
from pagefleet.api.connection import safe_url
from pagefleet.api.settings import FleetSettings
from pagefleet.workers.local_stack import LocalStack, WorkerProcess

_SHORT_LIFE_S: Final = 10.0
_MAX_SHORT_LIVES: Final = 3

_USAGE: Final = """
from pagefleet.api import FleetClient
for chunk in FleetClient().generate("Once upon a time", max_tokens=64):
    print(chunk.text, end="", flush=True)
"""


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--workers", "num_workers", default=1, show_default=True, help="Worker processes.")
@click.option("--drain-seconds", default=20.0, show_default=True, help="What running jobs get on Ctrl-C.")
@redis_option
@click.argument("worker_arguments", nargs=-1, type=click.UNPROCESSED)
def up(
    num_workers: int, drain_seconds: float, redis_url: str | None, worker_arguments: tuple[str, ...]
) -> None:
    """Start a Redis and workers here, and keep them running until Ctrl-C, which drains.

    Other options go to each worker: see `pagefleet worker --help`.

    \b
    pagefleet up
    pagefleet up --workers 2 --model ./my-checkpoint --dtype float32
    """
    settings = FleetSettings()
    url = redis_url or settings.redis_url
    stack = LocalStack(
        settings.home_dir,
        worker_arguments,
        num_workers=num_workers,
        redis_url=url,
        quiet=False,
        drain_s=drain_seconds,
    )
    stop = _stop_event()
    click.echo("starting (the first start converts the model once; later ones take seconds) ...")
    with stack:
        stack.write_stack_file(settings.stack_file)
        try:
            _print_started(stack, worker_arguments)
            _supervise(stack.workers, stop)
        finally:
            settings.stack_file.unlink(missing_ok=True)
            click.echo("\ndraining ...")
    click.echo("stopped")


def _stop_event() -> threading.Event:
    """Set by Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _print_started(stack: LocalStack, worker_arguments: Sequence[str]) -> None:
    if stack.server is not None:
        click.echo(f"redis    {stack.redis_url}  pid {stack.server.pid}, data in {stack.server.data_dir}")
    else:
        click.echo(f"redis    {safe_url(stack.redis_url)}  (not ours)")
    for worker in stack.workers:
        click.echo(f"worker   pid {worker.pid}  {' '.join(worker_arguments)}")
    click.echo("\nUse it from any process on this machine:\n" + _USAGE)
    click.echo("or:  pagefleet generate 'Once upon a time'   pagefleet chat   pagefleet status")
    click.echo("Ctrl-C drains and stops.")


def _supervise(workers: Sequence[WorkerProcess], stop: threading.Event) -> None:
    """Restarts a worker that died; gives up on one that dies again and again right after its start."""
    started_at = {id(worker): time.monotonic() for worker in workers}
    short_lives = dict.fromkeys(started_at, 0)
    while not stop.wait(0.5):
        for worker in workers:
            if worker.exit_status is None:
                continue
            key = id(worker)
            lived_s = time.monotonic() - started_at[key]
            short_lives[key] = short_lives[key] + 1 if lived_s < _SHORT_LIFE_S else 0
            click.echo(f"worker pid {worker.pid} ended with status {worker.exit_status}", err=True)
            if short_lives[key] >= _MAX_SHORT_LIVES:
                raise click.ClickException(f"a worker died {_MAX_SHORT_LIVES} times right after its start")
            with contextlib.suppress(OSError):
                worker.start()
            started_at[key] = time.monotonic()
