"""``pagefleet serve``: run a gateway."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from pagefleet.api.cli.options import given, redis_option
from pagefleet.api.cli.settings_options import setting_options
from pagefleet.api.config.log_format import PLAIN, RedactingFormatter
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.protocol.connection import safe_url


@click.command()
@setting_options(
    GatewaySettings,
    "gateway_host",
    "gateway_port",
    "gateway_keys_file",
    "gateway_keys_redis",
    "gateway_strict",
    "gateway_tls_cert",
    "gateway_tls_key",
    "gateway_tls_key_password_file",
    "gateway_tls_client_ca",
)
@redis_option
def serve(**options: Any) -> None:
    """Serve the OpenAI HTTP API for the fleet.

    The gateway runs until SIGTERM or Ctrl-C. Several gateways can serve one fleet, and each of them can
    answer every request. docs/settings.md lists further settings.

    \b
    Examples:
      pagefleet serve
      pagefleet serve --host 0.0.0.0 --port 8000 --keys-file keys.json
      pagefleet serve --host 0.0.0.0 --keys-redis
      pagefleet serve --host 0.0.0.0 --keys-redis --tls-cert chain.pem --tls-key key.pem
      pagefleet serve --strict --redis-url rediss://producer:PASSWORD@redis.internal:6379/0
    """
    # Imported late: it needs an extra.
    from pagefleet.api.gateway import server

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter(PLAIN))
    logging.basicConfig(level="INFO", handlers=[handler])
    logging.getLogger("uvicorn").setLevel("WARNING")
    settings = GatewaySettings.from_files(**given(options))

    def started(address: str) -> None:
        click.echo(f"Serving the fleet at {safe_url(settings.url)}: {address}/v1", err=True)

    server.serve(settings, started)
