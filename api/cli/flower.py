"""``pagefleet flower``: Celery's dashboard on the fleet's own Celery configuration."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import click

from pagefleet.api.cli.options import given, redis_option
from pagefleet.api.config.settings import FlowerSettings
from pagefleet.api.contract.errors import ConfigurationError


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
    "--prompt-chars",
    type=int,
    metavar="N",
    help="Show so much of a prompt; workers tell no more of it than their own setting says.  [default: 0]",
)
@redis_option
def flower(**options: Any) -> None:
    """Serve Flower until SIGTERM or Ctrl-C. Flower's own options are taken from FLOWER_* variables.

    \b
    pagefleet flower                                       http://127.0.0.1:5555
    pagefleet flower --address 0.0.0.0 --auth-file users   for others, with a password
    """
    settings = FlowerSettings.from_files(**given(options))
    users = _read_users(settings.flower_auth_file)
    if not users and not _is_loopback(settings.flower_address):
        raise ConfigurationError(
            f"flower_auth_file: without it Flower, which can command workers, does not listen on "
            f"{settings.flower_address}."
        )
    # Flower comes with an extra, and takes its time to import.
    from pagefleet.api.operate.flower.serve import serve

    serve(settings, users)


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
