"""``pagefleet serve``: the gateway, one process of it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from pagefleet.api.cli.options import redis_option
from pagefleet.api.config.log_format import PLAIN, PlaceOnly
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.protocol.connection import safe_url


@click.command()
@click.option("--host", help="Where to listen; beyond this host only with keys.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="0: a free one.  [default: 8000]")
@click.option(
    "--keys-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Who may come in: see `pagefleet keys`.  [default: everybody who can connect]",
)
@click.option("--keys-redis", is_flag=True, default=None, help="Who may come in stands in Redis.")
@click.option("--strict", is_flag=True, default=None, help="Refuse unknown fields in place of naming them.")
@redis_option
def serve(
    host: str | None,
    port: int | None,
    keys_file: Path | None,
    keys_redis: bool | None,
    strict: bool | None,
    redis_url: str | None,
) -> None:
    """Serve OpenAI's HTTP API over the fleet, until Ctrl-C. Any number of them serve any job.

    \b
    pagefleet serve
    pagefleet serve --host 0.0.0.0 --port 8000 --keys-file keys.json
    pagefleet serve --host 0.0.0.0 --keys-redis
    pagefleet serve --strict --redis-url rediss://producer:...@redis:6379/0
    """
    # Only now: it comes with an extra.
    from pagefleet.api.gateway import server

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlaceOnly(PLAIN))
    logging.basicConfig(level="INFO", handlers=[handler])
    logging.getLogger("uvicorn").setLevel("WARNING")
    settings = GatewaySettings.from_files(
        redis_url=redis_url,
        gateway_host=host,
        gateway_port=port,
        gateway_keys_file=keys_file,
        gateway_keys_redis=keys_redis,
        gateway_strict=strict,
    )

    def started(address: str) -> None:
        click.echo(f"gateway to the fleet at {safe_url(settings.url)}: {address}/v1", err=True)

    server.serve(settings, started)
