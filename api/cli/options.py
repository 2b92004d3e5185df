"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pagefleet.api.cli.model_names import complete_model
from pagefleet.api.cli.settings_options import setting_option
from pagefleet.api.client.synchronous.client import FleetClient
from pagefleet.api.config.settings import FleetSettings

F = TypeVar("F", bound=Callable[..., Any])


def redis_option(command: F) -> F:
    return setting_option(FleetSettings, "redis_url", metavar="URL")(command)


def sampling_options(command: F) -> F:
    options = [
        click.option(
            "--model",
            metavar="NAME",
            shell_complete=complete_model,
            help="Name or alias of the model. Default: the only model of the fleet.",
        ),
        click.option("--max-tokens", type=int, help="Maximum number of tokens to generate.  [default: 256]"),
        click.option(
            "--temperature",
            type=float,
            help="Sampling temperature; 0 is greedy. Default: the model's, else 1.0.",
        ),
        click.option(
            "--top-p",
            type=float,
            help="Sample from the likeliest tokens that together have this probability. "
            "Default: the model's, else 1.0.",
        ),
        click.option(
            "--top-k",
            type=int,
            help="Sample from the K likeliest tokens. Default: the model's, else all.",
            metavar="K",
        ),
        click.option(
            "--seed",
            type=int,
            help="Seed of the sampling; the same seed gives the same tokens. Default: random.",
        ),
        click.option(
            "--timeout",
            "idle_timeout",
            type=click.FloatRange(0, min_open=True),
            default=600.0,
            show_default=True,
            help="Give up after this time without a new token, in seconds.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def make_client(redis_url: str | None) -> FleetClient:
    return FleetClient(FleetSettings.from_files(redis_url=redis_url))


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the user gave; the others get their defaults elsewhere."""
    return {name: value for name, value in options.items() if value not in (None, ())}
