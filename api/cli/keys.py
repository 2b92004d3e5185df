"""``pagefleet keys``: who may use the gateway."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.table import Table

from pagefleet.api.cli.console import make_console
from pagefleet.api.cli.model_names import complete_model
from pagefleet.api.errors import ConfigurationError
from pagefleet.api.settings import GatewaySettings

F = TypeVar("F", bound=Callable[..., Any])


def _file_option(command: F) -> F:
    return click.option(
        "--file",
        "file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The file of keys.  [default: the setting gateway_keys_file]",
    )(command)


@click.group()
def keys() -> None:
    """The API keys of the gateway. A gateway that runs sees a change within a second.

    \b
    pagefleet keys add --tenant acme --file keys.json
    pagefleet keys list --file keys.json
    pagefleet keys revoke 1a2b3c4d --file keys.json
    """


@keys.command()
@click.option("--tenant", required=True, help="On whose behalf: it sees its own jobs only.")
@click.option(
    "--model", "models", multiple=True, shell_complete=complete_model, help="May use it.  [default: all]"
)
@click.option(
    "--lane", type=click.Choice(["interactive", "batch"]), default="interactive", help="Where its jobs go."
)
@click.option("--max-open", type=click.IntRange(1), help="Open jobs of the tenant in each queue.")
@click.option("--requests-per-minute", type=click.IntRange(1), help="By default no limit.")
@click.option("--tokens-per-minute", type=click.IntRange(1), help="Prompts and answers. By default no limit.")
@_file_option
def add(file: Path | None, tenant: str, models: tuple[str, ...], **limits: Any) -> None:
    """Make a key and print it. It is written nowhere: the file has its hash.

    \b
    pagefleet keys add --tenant acme --file keys.json
    pagefleet keys add --tenant acme --model null --max-open 8 --requests-per-minute 60 --file keys.json
    """
    from pagefleet.api.gateway.api_keys import KeyFile

    token, key = KeyFile(_file(file)).add(tenant=tenant, models=list(models) or None, **limits)
    click.echo(f"key {key.key_id} of {key.tenant}, shown this once:", err=True)
    click.echo(token)


@keys.command("list")
@_file_option
def list_keys(file: Path | None) -> None:
    """Which keys there are, and what each may do.

    \b
    pagefleet keys list --file keys.json
    """
    from pagefleet.api.gateway.api_keys import KeyFile

    table = Table("id", "tenant", "models", "lane", "max open", "requests/min", "tokens/min", box=None)
    for key in KeyFile(_file(file)).read():
        limits = (key.max_open, key.requests_per_minute, key.tokens_per_minute)
        shown = ("-" if limit is None else str(limit) for limit in limits)
        table.add_row(key.key_id, key.tenant, ", ".join(key.models or ["all"]), key.lane, *shown)
    make_console().print(table)


@keys.command()
@click.argument("key_id")
@_file_option
def revoke(file: Path | None, key_id: str) -> None:
    """Make a key worthless. What it has started goes on.

    \b
    pagefleet keys revoke 1a2b3c4d --file keys.json
    """
    from pagefleet.api.gateway.api_keys import KeyFile

    path = _file(file)
    if not KeyFile(path).revoke(key_id):
        raise ConfigurationError(f"{path} has no key {key_id!r}.")
    click.echo(f"revoked {key_id}", err=True)


def _file(given: Path | None) -> Path:
    path = given or GatewaySettings.from_files().gateway_keys_file
    if path is None:
        raise ConfigurationError("Name the file of keys: --file, or the setting gateway_keys_file.")
    return path
