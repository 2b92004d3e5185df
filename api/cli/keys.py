"""``pagefleet keys``: create, list and revoke the API keys of the gateway."""

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
    from pagefleet.api.gateway.access.api_keys import KeyStore

F = TypeVar("F", bound=Callable[..., Any])


def _store_options(command: F) -> F:
    file = click.option(
        "--file",
        "file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="File with the keys. Default: the setting `gateway_keys_file`.",
    )
    in_redis = click.option(
        "--redis",
        "in_redis",
        is_flag=True,
        help="Keep the keys in Redis. Default: the setting `gateway_keys_redis`.",
    )
    return file(in_redis(redis_option(command)))


@click.group()
def keys() -> None:
    """Create, list or revoke API keys of the gateway.

    Keys are stored in Redis or in a file. Running gateways apply a change within a second.

    \b
    Examples:
      pagefleet keys add --tenant acme --redis
      pagefleet keys list --redis
      pagefleet keys revoke 1a2b3c4d --redis
      pagefleet keys add --tenant acme --file keys.json
    """


@keys.command()
@click.option("--tenant", required=True, help="Tenant of the key. A tenant sees its own jobs only.")
@click.option(
    "--model",
    "models",
    multiple=True,
    shell_complete=complete_model,
    help="Model that the key may use. Can be given several times. Default: all models.",
)
@click.option(
    "--lane",
    type=click.Choice(["interactive", "batch"]),
    default="interactive",
    show_default=True,
    help="Lane of its jobs.",
)
@click.option(
    "--max-open",
    type=click.IntRange(1),
    help="Maximum number of choices in the tenant's open jobs in each queue. "
    "Default: `max_tenant_depth` of the workers.",
)
@click.option(
    "--requests-per-minute", type=click.IntRange(1), help="Rate limit of requests. Default: no limit."
)
@click.option(
    "--tokens-per-minute",
    type=click.IntRange(1),
    help="Rate limit of prompt and output tokens. Default: no limit.",
)
@click.option(
    "--max-stored-bytes",
    type=click.IntRange(1),
    help="Maximum size of the tenant's requests and results in Redis, in bytes. "
    "Default: `max_tenant_bytes` of the workers.",
)
@click.option(
    "--max-result-ttl-s",
    type=click.IntRange(1),
    help="Maximum time for which results can be read, in seconds. "
    "Default: `max_result_ttl_s` of the workers.",
)
@_store_options
def add(
    file: Path | None,
    in_redis: bool,
    redis_url: str | None,
    tenant: str,
    models: tuple[str, ...],
    **limits: Any,
) -> None:
    """Create an API key and print it once.

    Only its hash is stored.

    \b
    Examples:
      pagefleet keys add --tenant acme --redis
      pagefleet keys add --tenant acme --model null --max-open 8 --requests-per-minute 60 --redis
      pagefleet keys add --tenant acme --file keys.json
    """
    with _open_store(file, in_redis, redis_url) as store:
        token, key = store.add(tenant=tenant, models=list(models) or None, **limits)
    click.echo(f"API key {key.key_id} of tenant {key.tenant}; it is not shown again:", err=True)
    click.echo(token)


@keys.command("list")
@_store_options
def list_keys(file: Path | None, in_redis: bool, redis_url: str | None) -> None:
    """List the API keys with their limits.

    \b
    Examples:
      pagefleet keys list --redis
      pagefleet keys list --file keys.json
    """
    with _open_store(file, in_redis, redis_url) as store:
        found = store.read()
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
        cells = ("-" if limit is None else str(limit) for limit in limits)
        table.add_row(key.key_id, key.tenant, ", ".join(key.models or ["all"]), key.lane, *cells)
    make_console().print(table)


@keys.command()
@click.argument("key_id")
@_store_options
def revoke(file: Path | None, in_redis: bool, redis_url: str | None, key_id: str) -> None:
    """Revoke an API key.

    Its running requests continue.

    \b
    Examples:
      pagefleet keys revoke 1a2b3c4d --redis
      pagefleet keys revoke 1a2b3c4d --file keys.json
    """
    with _open_store(file, in_redis, redis_url) as store:
        if not store.revoke(key_id):
            raise ConfigurationError(f"{store.name} has no key {key_id!r}.")
    click.echo(f"revoked {key_id}", err=True)


@contextmanager
def _open_store(file: Path | None, in_redis: bool, redis_url: str | None) -> Iterator[KeyStore]:
    """Open the key store that the options name, else the one in the settings of the gateway."""
    # Imported late: the other commands do not need the gateway.
    from pagefleet.api.gateway.access.key_file import KeyFile
    from pagefleet.api.gateway.access.redis_keys import RedisKeys

    settings = GatewaySettings.from_files(redis_url=redis_url)
    if in_redis and file is not None:
        raise ConfigurationError("--file and --redis cannot be used together; choose one key store.")
    chosen = in_redis or file is not None
    if not chosen and settings.gateway_keys_redis and settings.gateway_keys_file is not None:
        raise ConfigurationError(
            "gateway_keys_redis: gateway_keys_file is set too; choose one key store with --redis or --file."
        )
    path = file or settings.gateway_keys_file
    store: KeyStore
    if in_redis or (file is None and settings.gateway_keys_redis):
        store = RedisKeys(settings)
    elif path is not None:
        store = KeyFile(path)
    else:
        raise ConfigurationError(
            "Choose a key store: --redis, --file FILE, or the settings gateway_keys_redis, gateway_keys_file."
        )
    try:
        yield store
    finally:
        store.close()
