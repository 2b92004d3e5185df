"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pagefleet.api.cli.model_names import complete_model
from pagefleet.api.client.client import FleetClient
from pagefleet.api.config.settings import FleetSettings

F = TypeVar("F", bound=Callable[..., Any])


def redis_option(command: F) -> F:
    return click.option(
        "--redis-url",
        metavar="URL",
        help="Redis to use; by default $REDIS_URL, else the stack that `pagefleet up` keeps running.",
    )(command)


def sampling_options(command: F) -> F:
    options = [
        click.option(
            "--model",
            metavar="NAME",
            shell_complete=complete_model,
            help="Name or alias; not needed where there is only one.",
        ),
        click.option("--max-tokens", type=int, help="Tokens to generate at most.  [default: 256]"),
        click.option("--temperature", type=float, help="0 is greedy.  [default: the model's, else 1.0]"),
        click.option("--top-p", type=float, help="Draw from the likeliest tokens that make up this share."),
        click.option("--top-k", type=int, help="Draw from so many likeliest tokens.  [default: all]"),
        click.option("--seed", type=int, help="The same seed gives the same tokens."),
        click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds of silence."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def make_client(redis_url: str | None) -> FleetClient:
    return FleetClient(FleetSettings.from_files(redis_url=redis_url))


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; the others are left to their defaults."""
    return {name: value for name, value in options.items() if value is not None}
