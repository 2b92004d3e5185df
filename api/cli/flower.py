"""``pagefleet flower``: run Flower with the Celery configuration of the fleet."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import click

from pagefleet.api.cli.options import given, redis_option
from pagefleet.api.cli.settings_options import setting_options
from pagefleet.api.config.settings import FlowerSettings
from pagefleet.api.contract.errors import ConfigurationError


@click.command()
@setting_options(FlowerSettings, "flower_address", "flower_port", "flower_auth_file", "prompt_chars")
@redis_option
def flower(**options: Any) -> None:
    """Serve Flower, Celery's web page, for the fleet.

    Flower shows workers and jobs, and can cancel jobs. It runs until SIGTERM or Ctrl-C. Set Flower's own
    options with FLOWER_* variables.

    \b
    Examples:
      pagefleet flower                                       on http://127.0.0.1:5555
      pagefleet flower --address 0.0.0.0 --auth-file users   for other hosts, with a login
    """
    settings = FlowerSettings.from_files(**given(options))
    users = _read_users(settings.flower_auth_file)
    if not users and not _is_loopback(settings.flower_address):
        raise ConfigurationError(
            f"flower_auth_file: Flower can control workers, so it does not listen on "
            f"{settings.flower_address} without a login; set --auth-file to a file of user:password lines."
        )
    # Imported late: Flower needs an extra and is slow to import.
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
        raise ConfigurationError(
            f"flower_auth_file: {file} must contain one user:password per line, without commas."
        )
    return lines


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
