"""``pagefleet keys``: who may use the gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.table import Column, Table

from pagefleet.api.cli.console import make_console
from pagefleet.api.cli.model_names import complete_model
from pagefleet.api.cli.options import redis_option
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.contract.errors import ConfigurationError

if TYPE_CHECKING:
    from pagefleet.api.gateway.access.api_keys import KeyFile
    from pagefleet.api.gateway.access.redis_keys import RedisKeys

F = TypeVar("F", bound=Callable[..., Any])


def _place_options(command: F) -> F:
    file = click.option(
        "--file",
        "file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The file of keys.  [default: the setting gateway_keys_file]",
    )
    in_redis = click.option(
        "--redis", "in_redis", is_flag=True, help="In Redis.  [default: the setting gateway_keys_redis]"
    )
    return file(in_redis(redis_option(command)))


@click.group()
def keys() -> None:
    """The API keys of the gateway. A gateway that runs sees a change within a second.

    \b
    pagefleet keys add --tenant acme --file keys.json
    pagefleet keys list --file keys.json
    pagefleet keys revoke 1a2b3c4d --file keys.json
    pagefleet keys add --tenant acme --redis
    """


@keys.command()
@click.option("--tenant", required=True, help="On whose behalf: it sees its own jobs only.")
@click.option(
    "--model", "models", multiple=True, shell_complete=complete_model, help="May use it.  [default: all]"
)
@click.option(
    "--lane", type=click.Choice(["interactive", "batch"]), default="interactive", help="Where its jobs go."
)
@click.option("--max-open", type=click.IntRange(1), help="Choices in the tenant's open jobs in each queue.")
@click.option("--requests-per-minute", type=click.IntRange(1), help="By default no limit.")
@click.option("--tokens-per-minute", type=click.IntRange(1), help="Prompts and answers. By default no limit.")
@click.option("--max-stored-bytes", type=click.IntRange(1), help="Of the tenant's requests and results.")
@click.option("--max-result-ttl-s", type=click.IntRange(1), help="Seconds for which results can be read.")
@_place_options
def add(
    file: Path | None,
    in_redis: bool,
    redis_url: str | None,
    tenant: str,
    models: tuple[str, ...],
    **limits: Any,
) -> None:
    """Make a key and print it. It is written nowhere: the file, or Redis, has its hash.

    \b
    pagefleet keys add --tenant acme --file keys.json
    pagefleet keys add --tenant acme --model null --max-open 8 --requests-per-minute 60 --file keys.json
    pagefleet keys add --tenant acme --redis
    """
    with _place(file, in_redis, redis_url) as place:
        token, key = place.add(tenant=tenant, models=list(models) or None, **limits)
    click.echo(f"key {key.key_id} of {key.tenant}, shown this once:", err=True)
    click.echo(token)


@keys.command("list")
@_place_options
def list_keys(file: Path | None, in_redis: bool, redis_url: str | None) -> None:
    """Which keys there are, and what each may do.

    \b
    pagefleet keys list --file keys.json
    pagefleet keys list --redis
    """
    with _place(file, in_redis, redis_url) as place:
        found = place.read()
    table = Table(
        Column("id", no_wrap=True),
        Column("tenant", no_wrap=True),
        "models",
        "lane",
        "max open",
        "requests/min",
        "tokens/min",
        "stored",
        "result TTL",
        box=None,
    )
    for key in found:
        limits = (
            key.max_open,
            key.requests_per_minute,
            key.tokens_per_minute,
            key.max_stored_bytes,
            key.max_result_ttl_s,
        )
        shown = ("-" if limit is None else str(limit) for limit in limits)
        table.add_row(key.key_id, key.tenant, ", ".join(key.models or ["all"]), key.lane, *shown)
    make_console().print(table)


@keys.command()
@click.argument("key_id")
@_place_options
def revoke(file: Path | None, in_redis: bool, redis_url: str | None, key_id: str) -> None:
    """Make a key worthless. What it has started goes on.

    \b
    pagefleet keys revoke 1a2b3c4d --file keys.json
    pagefleet keys revoke 1a2b3c4d --redis
    """
    with _place(file, in_redis, redis_url) as place:
        if not place.revoke(key_id):
            raise ConfigurationError(f"{place.name} has no key {key_id!r}.")
    click.echo(f"revoked {key_id}", err=True)


@contextmanager
def _place(file: Path | None, in_redis: bool, redis_url: str | None) -> Iterator[KeyFile | RedisKeys]:
    """Where the keys stand: as it is asked for here, else as the gateway's settings say."""
    # Only now: other commands need nothing of the gateway.
    from pagefleet.api.gateway.access.api_keys import KeyFile
    from pagefleet.api.gateway.access.redis_keys import RedisKeys

    settings = GatewaySettings.from_files(redis_url=redis_url)
    if in_redis and file is not None:
        raise ConfigurationError("--file and --redis: keys stand in one place.")
    if in_redis or (file is None and settings.gateway_keys_redis):
        place = RedisKeys(settings)
        try:
            yield place
        finally:
            place.close()
        return
    path = file or settings.gateway_keys_file
    if path is None:
        raise ConfigurationError(
            "Name the file of keys: --file, or the setting gateway_keys_file; or --redis."
        )
    yield KeyFile(path)
