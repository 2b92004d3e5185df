"""``pagefleet flower``: Celery's dashboard on the fleet's own Celery configuration."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Final

import click

from pagefleet.api.celery_app import make_celery
from pagefleet.api.cli.options import given, redis_option
from pagefleet.api.errors import ConfigurationError
from pagefleet.api.settings import FlowerSettings

_COLUMNS: Final = "name,uuid,state,received,started,runtime,worker,retries,kwargs"


@click.command()
@click.option("--address", "flower_address", metavar="HOST", help="Where to listen.  [default: 127.0.0.1]")
@click.option("--port", "flower_port", type=int, help="[default: 5555]")
@click.option(
    "--auth-file",
    "flower_auth_file",
    type=click.Path(path_type=Path),
    help="Who may come in: lines of user:password. Needed on any address but this machine's own.",
)
@click.option(
    "--show-arguments",
    "flower_show_arguments",
    is_flag=True,
    default=None,
    help="Show what tasks were called with, prompts of plain Celery services included.",
)
@redis_option
def flower(**options: Any) -> None:
    """Serve Flower until SIGTERM or Ctrl-C. Flower's own options are taken from FLOWER_* variables.

    \b
    pagefleet flower                                       http://127.0.0.1:5555
    pagefleet flower --address 0.0.0.0 --auth-file users   for others, with a password
    """
    settings = FlowerSettings.load(**given(options))
    users = _read_users(settings.flower_auth_file)
    if not users and not _is_loopback(settings.flower_address):
        raise ConfigurationError(
            f"flower_auth_file: without it Flower, which can command workers, does not listen on "
            f"{settings.flower_address}."
        )
    _serve(settings, users)


def _serve(settings: FlowerSettings, users: list[str]) -> None:
    # Flower keeps its options in a module, and takes a function for one of them only there.
    from flower.options import options

    if not settings.flower_show_arguments:
        options.format_task = hide_arguments
    app = make_celery(settings)
    # Flower asks from several threads at once and waits for each other's connections: a pool deadlocks it.
    app.conf.broker_pool_limit = None
    arguments = [
        f"--address={settings.flower_address}",
        f"--port={settings.flower_port}",
        f"--tasks_columns={_COLUMNS}",
        *([f"--basic_auth={','.join(users)}"] if users else []),
    ]
    app.start(["--quiet", "flower", *arguments])


def hide_arguments(task: Any) -> Any:
    """For a task's columns and page: the prompt of a plain Celery service stands in its arguments."""
    task.args = task.kwargs = "..."
    return task


def _read_users(file: Path | None) -> list[str]:
    """Raises: ConfigurationError: the file cannot be read, or has a line that is not ``user:password``."""
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"flower_auth_file: {error}.") from None
    # Flower separates users by commas.
    if not lines or not all(all(line.partition(":")) and "," not in line for line in lines):
        raise ConfigurationError("flower_auth_file: it takes lines of user:password, without commas.")
    return lines


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
