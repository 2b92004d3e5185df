"""``pagefleet up``: run a local stack in the foreground until Ctrl-C."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from pagefleet.api.cli.options import given
from pagefleet.api.cli.settings_options import setting_option
from pagefleet.api.config.extras import has_extra, pip_command
from pagefleet.api.config.settings import FlowerSettings, GatewaySettings
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.api.protocol.connection import safe_url
from pagefleet.workers.local.child_process import ChildProcess
from pagefleet.workers.local.flower_process import FlowerProcess
from pagefleet.workers.local.gateway_process import GatewayProcess
from pagefleet.workers.local.local_stack import LocalStack, WorkerProcess
from pagefleet.workers.local.stack_guard import StackGuard
from pagefleet.workers.settings import WorkerSettings

_SHORT_LIFE_S: Final = 10.0
_MAX_SHORT_LIVES: Final = 3

_USAGE: Final = """
from pagefleet import FleetClient
for chunk in FleetClient().generate("Once upon a time", max_tokens=64):
    print(chunk.text, end="", flush=True)
"""


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--workers",
    "num_workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of worker processes.",
)
@setting_option(WorkerSettings, "drain_s", "--drain-seconds")
@setting_option(
    WorkerSettings,
    "metrics_port",
    help="TCP port of the first worker's Prometheus metrics; the other workers use the next ports. 0 selects "
    "free ports. Default: no metrics.",
)
@click.option(
    "--flower/--no-flower", default=True, help="Serve Flower. Default: serve it if it is installed."
)
@setting_option(
    FlowerSettings,
    "flower_port",
    "--flower-port",
    type=click.IntRange(0, 65535),
    help="TCP port of Flower; 0 selects a free port.",
)
@click.option(
    "--gateway/--no-gateway", default=True, help="Serve the HTTP API. Default: serve it if it is installed."
)
@setting_option(
    GatewaySettings, "gateway_port", "--gateway-port", help="TCP port of the gateway; 0 selects a free port."
)
@setting_option(
    WorkerSettings,
    "redis_url",
    metavar="URL",
    help="URL of a Redis server to use; rediss:// uses TLS. Default: start one on this machine.",
)
@click.argument("worker_arguments", metavar="[WORKER OPTIONS]...", nargs=-1, type=click.UNPROCESSED)
def up(
    num_workers: int,
    flower: bool,
    flower_port: int | None,
    gateway: bool,
    gateway_port: int | None,
    worker_arguments: tuple[str, ...],
    **options: Any,
) -> None:
    """Run a local stack: Redis, workers, Flower and the gateway.

    Ctrl-C lets running jobs finish, then stops everything. Further options are passed to each worker: see
    `pagefleet worker --help`.

    \b
    Examples:
      pagefleet up
      pagefleet up --workers 2 --model ./my-checkpoint --dtype float32
      pagefleet up --workers 2 --metrics-port 9100 --flower-port 0 --gateway-port 8080
    """
    settings = WorkerSettings.from_files(**given(options))
    _check_home(settings.home_dir)
    _end_start_on_signals()
    with StackGuard(settings.drain_s) as guard:
        stack = LocalStack(
            settings.home_dir,
            worker_arguments,
            num_workers=num_workers,
            redis_url=settings.redis_url,
            metrics_port=settings.metrics_port,
            quiet=False,
            drain_s=settings.drain_s,
            guard=guard,
            # A download of a large model can take hours; Ctrl-C ends it.
            ready_timeout_s=math.inf,
        )
        dashboard = _add_flower(stack, flower_port) if flower and has_extra("monitor") else None
        http = _add_gateway(stack, gateway_port) if gateway and has_extra("gateway") else None
        click.echo("starting ... (the first start downloads or converts the model, which can take minutes)")
        with stack:
            stop = _stop_event()
            stack.write_stack_file(settings.stack_file)
            try:
                _print_started(stack, worker_arguments)
                if flower:
                    _print_flower(dashboard)
                if gateway:
                    _print_gateway(http)
                _print_usage()
                _supervise(stack, stop)
            finally:
                settings.stack_file.unlink(missing_ok=True)
                click.echo("\ndraining ...")
    click.echo("stopped")


def _check_home(home: Path) -> None:
    """Raise ConfigurationError unless ``home`` is or can become a directory that this user can write to."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(home, os.W_OK | os.X_OK) else "permission denied"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    if reason is not None:
        raise ConfigurationError(
            f"home: cannot write the data of the stack to {home} ({reason}); "
            "set PAGEFLEET_HOME to another directory."
        )


def _add_flower(stack: LocalStack, port: int | None) -> FlowerProcess:
    flower = FlowerProcess(stack.redis_url, FlowerSettings.from_files(), port)
    stack.companions.append(flower)
    return flower


def _add_gateway(stack: LocalStack, port: int | None) -> GatewayProcess:
    gateway = GatewayProcess(stack.redis_url, GatewaySettings.from_files(), port)
    stack.companions.append(gateway)
    return gateway


def _end_start_on_signals() -> None:
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt. A shell's background jobs ignore Ctrl-C otherwise."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def _stop_event() -> threading.Event:
    """Return an event that Ctrl-C and SIGTERM set from now on."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _print_started(stack: LocalStack, worker_arguments: Sequence[str]) -> None:
    if stack.server is not None and stack.endpoint is not None:
        click.echo(
            f"redis    {safe_url(stack.redis_url)}  pid {stack.server.pid}, data in {stack.server.data_dir}"
        )
        click.echo(f"         URL with the password, unchanged by restarts: {stack.endpoint.file}")
    else:
        click.echo(f"redis    {safe_url(stack.redis_url)}  (not started by this command)")
    for worker in stack.workers:
        click.echo(f"worker   pid {worker.pid}  {' '.join(worker_arguments)}")


def _print_flower(flower: FlowerProcess | None) -> None:
    if flower is None:
        click.echo(f"flower   not installed: {pip_command(['monitor'])}")
    else:
        click.echo(f"flower   {flower.url}  user and password in {flower.auth_file}")


def _print_gateway(gateway: GatewayProcess | None) -> None:
    if gateway is None:
        click.echo(f"gateway  not installed: {pip_command(['gateway'])}")
    else:
        click.echo(f"gateway  {gateway.url}/v1")
        click.echo(f"page     {gateway.url}/  (chat and jobs in a browser)")


def _print_usage() -> None:
    click.echo("\nUse it from any Python process on this machine:\n" + _USAGE)
    click.echo("or:  pagefleet generate 'Once upon a time'   pagefleet chat   pagefleet status")
    click.echo("Press Ctrl-C to drain and stop.")


def _supervise(stack: LocalStack, stop: threading.Event) -> None:
    """Restart each child that ends, except one that ended repeatedly right after its start.

    If that is a worker, the command fails; it continues without Flower or the gateway.
    """
    watched = list(stack.children)
    started_at = {id(child): time.monotonic() for child in watched}
    short_lives = dict.fromkeys(started_at, 0)
    while not stop.wait(0.5):
        for child in list(watched):
            if child.exit_status is None:
                continue
            key = id(child)
            lifetime_s = time.monotonic() - started_at[key]
            short_lives[key] = short_lives[key] + 1 if lifetime_s < _SHORT_LIFE_S else 0
            click.echo(f"{child.kind} pid {child.pid} ended with status {child.exit_status}", err=True)
            if short_lives[key] >= _MAX_SHORT_LIVES:
                _give_up(child)
                watched.remove(child)
                continue
            with contextlib.suppress(OSError):
                child.start()
            started_at[key] = time.monotonic()
            stack.watch()


def _give_up(child: ChildProcess) -> None:
    problem = f"the {child.kind} ended {_MAX_SHORT_LIVES} times right after its start"
    if isinstance(child, WorkerProcess):
        raise click.ClickException(problem)
    click.echo(f"{problem}: {child.log_tail()}", err=True)
