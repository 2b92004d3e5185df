"""Settings of clients, Flower and the gateway.

Each field can be set by the environment variable ``PAGEFLEET_<NAME>``; ``redis_url`` also by ``REDIS_URL``.
Commands read ``./.env`` and ``./pagefleet.toml`` too, a service that creates a ``FleetClient()`` does not
(ops/decisions/0009). The descriptions of the fields appear in ``--help`` and in docs/settings.md.
"""

from __future__ import annotations

import json
import os
import ssl
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

from pydantic import AliasChoices, Field, FilePath, field_validator, model_validator
from pydantic_core import PydanticCustomError

from pagefleet.api.config.layered_settings import LayeredSettings
from pagefleet.api.config.redis_url import add_password, check_redis_url

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
DEFAULT_MAX_REQUEST_BYTES: Final = 4 * 2**20


class FleetSettings(LayeredSettings):
    """Settings that clients, monitors and workers share."""

    redis_url: str | None = Field(
        None,
        # The field's own name is not an alias: the environment source would read it as REDIS_URL, and first.
        validation_alias=AliasChoices("PAGEFLEET_REDIS_URL", "REDIS_URL"),
        description="URL of the Redis server, as in redis://USER:PASSWORD@HOST:6379/0; rediss:// uses TLS. "
        "Default: the server of a running `pagefleet up`, else redis://127.0.0.1:6379/0.",
    )
    redis_password_file: FilePath | None = Field(
        None,
        description="File with the password of the user in `redis_url`. It keeps the password out of the "
        "environment.",
    )
    home: Path = Field(
        Path("~/.pagefleet"), description="Directory for the data and log files of `pagefleet up`."
    )
    redis_ca: FilePath | None = Field(
        None,
        description="PEM file of the certificate authority that signed the certificate of a rediss:// "
        "server. Default: the system's authorities.",
    )
    redis_cert: FilePath | None = Field(
        None, description="PEM file of the client certificate for a rediss:// server; needs `redis_key`."
    )
    redis_key: FilePath | None = Field(None, description="PEM file of the private key of `redis_cert`.")
    connect_timeout_s: float = Field(
        3.0, gt=0, description="Timeout for connecting to the Redis server, in seconds."
    )
    socket_timeout_s: float = Field(
        5.0, gt=0, description="Timeout for one reply of the Redis server, in seconds."
    )
    result_ttl_s: int = Field(
        3600, gt=0, description="Time for which the result of an ended job can be read, in seconds."
    )
    dead_letter_ttl_s: int = Field(
        7 * 86400, gt=0, description="Time for which a dead letter is kept, in seconds."
    )
    refused_ttl_s: int = Field(
        86400,
        gt=0,
        description="Time for which a job that has begun waits for a worker with the same weights, in "
        "seconds. After that it becomes a dead letter.",
    )
    card_ttl_s: float = Field(
        5.0, ge=0, description="Time for which a client caches the model cards, in seconds."
    )
    max_request_bytes: int = Field(
        DEFAULT_MAX_REQUEST_BYTES,
        gt=0,
        description="Maximum size of one request as JSON, in bytes. Clients and workers enforce it.",
    )

    prompt_chars: int = Field(
        0,
        ge=0,
        le=1000,
        description="Number of characters of each prompt that Celery events and Flower may show. A worker "
        "never sends more than its own setting allows.",
    )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str | None) -> str | None:
        return url if url is None else check_redis_url(url)

    @model_validator(mode="after")
    def _require_certificate_and_key(self) -> Self:
        if (self.redis_cert is None) != (self.redis_key is None):
            raise PydanticCustomError("tls", "set both redis_cert and redis_key, or neither")
        return self

    @property
    def home_dir(self) -> Path:
        return self.home.expanduser()

    @property
    def stack_file(self) -> Path:
        """The file that a running ``pagefleet up`` writes: ``{"redis_url": ..., "pid": ...}``."""
        return self.home_dir / "stack.json"

    @cached_property
    def url(self) -> str:
        """The server to use: ``redis_url``, else the one of the local stack, else Redis's default port."""
        url = self.redis_url or self._local_stack_url() or DEFAULT_REDIS_URL
        return url if self.redis_password_file is None else add_password(url, self.redis_password_file)

    @property
    def tls(self) -> dict[str, Any]:
        """TLS options for redis-py and kombu; empty unless the URL is ``rediss://``."""
        if not self.url.startswith("rediss://"):
            return {}
        files = {
            "ssl_ca_certs": self.redis_ca,
            "ssl_certfile": self.redis_cert,
            "ssl_keyfile": self.redis_key,
        }
        return {
            "ssl_cert_reqs": ssl.CERT_REQUIRED,
            "ssl_check_hostname": True,
            **{name: str(path) for name, path in files.items() if path is not None},
        }

    def _local_stack_url(self) -> str | None:
        try:
            stack = json.loads(self.stack_file.read_text())
            os.kill(int(stack["pid"]), 0)
            return str(stack["redis_url"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


class FlowerSettings(FleetSettings):
    """Settings of ``pagefleet flower``."""

    section = "flower"

    flower_address: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on. Any address other than a loopback address needs an auth file.",
    )
    flower_port: int = Field(5555, ge=1, le=65535, description="TCP port to listen on.")
    flower_auth_file: Path | None = Field(
        None,
        description="File with the users that may log in, one `user:password` per line. Default: no login, "
        "which is allowed on a loopback address only.",
    )


class GatewaySettings(FleetSettings):
    """Settings of ``pagefleet serve``."""

    section = "gateway"

    gateway_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on. Any address other than a loopback address needs API keys, or "
        "`gateway_open`.",
    )
    gateway_port: int = Field(
        8000, ge=0, le=65535, description="TCP port to listen on; 0 selects a free port."
    )
    gateway_keys_file: Path | None = Field(
        None,
        description="Load API keys from this file, which `pagefleet keys add --file` writes. Default: no API "
        "keys; every client that can connect is served.",
    )
    gateway_keys_redis: bool = Field(
        False, description="Load API keys from Redis, where `pagefleet keys add --redis` stores them."
    )
    gateway_tls_cert: FilePath | None = Field(
        None,
        description="PEM file of the certificate chain; the gateway then serves HTTPS. Default: plain HTTP.",
    )
    gateway_tls_key: FilePath | None = Field(
        None,
        description="PEM file of the private key of `gateway_tls_cert`. Default: the same file.",
    )
    gateway_tls_key_password_file: FilePath | None = Field(
        None, description="File that contains the password of the private key."
    )
    gateway_tls_client_ca: FilePath | None = Field(
        None,
        description="PEM file of certificate authorities. Clients must then present a certificate that one "
        "of them has signed.",
    )
    gateway_open: bool = Field(
        False, description="Allow an address other than a loopback address without API keys."
    )
    gateway_strict: bool = Field(
        False,
        description="Reject requests with unknown fields. Without it, unknown fields are ignored and listed "
        "in a response header.",
    )
    gateway_cors_origins: list[str] = Field(
        default_factory=list,
        description="Origins whose web pages may send requests from a browser, as in "
        "https://app.example.com. Default: none.",
    )
    gateway_timeout_s: float = Field(
        600.0, gt=0, description="Timeout for a response that is not streamed, in seconds."
    )
    gateway_keep_alive_s: float = Field(
        15.0, gt=0, description="Keep-alive interval of idle streams, in seconds."
    )
    gateway_send_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Close the connection of a client that accepts no data for this time, in seconds.",
    )
    gateway_return_within_s: float = Field(
        10.0,
        ge=0,
        description="Time in which a client that lost the connection of a resumable stream can reconnect, in "
        "seconds. After that its job is cancelled.",
    )
    gateway_reads_per_s: float = Field(
        50.0,
        gt=0,
        description="Rate limit of each API key at each gateway for requests that read or end jobs or list "
        "models, in requests per second.",
    )
    gateway_drain_s: float = Field(
        20.0, ge=0, description="Time that running requests have to finish after SIGTERM, in seconds."
    )
    gateway_max_connections: int = Field(
        4096, gt=0, description="Maximum number of open connections. Further ones are refused."
    )
    gateway_max_header_bytes: int = Field(
        32768, ge=1024, description="Maximum size of the header of a request, in bytes."
    )
    gateway_max_body_bytes: int = Field(
        DEFAULT_MAX_REQUEST_BYTES, gt=0, description="Maximum size of the body of a request, in bytes."
    )
    gateway_header_timeout_s: float = Field(
        15.0, gt=0, description="Timeout for receiving the header of a request, in seconds."
    )
    gateway_body_timeout_s: float = Field(
        60.0, gt=0, description="Timeout for receiving the body of a request, in seconds."
    )
    gateway_idle_timeout_s: float = Field(
        75.0, ge=1, description="Close a connection without a request after this time, in seconds."
    )

    @model_validator(mode="after")
    def _tls_options_need_a_certificate(self) -> Self:
        for name in ("gateway_tls_key", "gateway_tls_key_password_file", "gateway_tls_client_ca"):
            if getattr(self, name) is not None and self.gateway_tls_cert is None:
                raise PydanticCustomError("tls", "set gateway_tls_cert too, or remove {name}", {"name": name})
        return self
