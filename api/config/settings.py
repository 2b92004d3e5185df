"""Settings of clients, Flower and the gateway. This module and ``workers/settings.py`` read the environment.

Each field can be set by the environment variable ``PAGEFLEET_<NAME>``; ``redis_url`` also by ``REDIS_URL``.
Commands read ``./.env`` and ``./pagefleet.toml`` too, a service that creates a ``FleetClient()`` does not
(ops/decisions/0009). The descriptions of the fields appear in ``--help`` and in docs/settings.md.
"""

from __future__ import annotations

import json
import os
import re
import ssl
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, Self
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import AliasChoices, Field, FilePath, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from pagefleet.api.config.settings_files import (
    ENV_FILE,
    TOML_FILE,
    from_env_file,
    from_environment,
    from_toml,
)
from pagefleet.api.contract.errors import ConfigurationError

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
DEFAULT_MAX_REQUEST_BYTES: Final = 4 * 2**20
CONFIG_VARIABLE: Final = "PAGEFLEET_CONFIG"
"""Path of a TOML file to read instead of ``./pagefleet.toml``. If it is empty, commands read no files."""


class FleetSettings(BaseSettings):
    """Settings that clients, monitors and workers share."""

    model_config = SettingsConfigDict(
        env_prefix="PAGEFLEET_", env_ignore_empty=True, frozen=True, extra="forbid", populate_by_name=True
    )
    section: ClassVar[str | None] = None
    """The table of a TOML file that holds the settings of this class."""

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
    def _reject_tls_options(cls, url: str | None) -> str | None:
        """redis-py and kombu would accept ``?ssl_cert_reqs=none`` in the URL."""
        if url is not None and "ssl_" in url.partition("?")[2]:
            raise PydanticCustomError(
                "tls",
                "remove the ssl_ options from the URL; certificates are always verified, against the CA in "
                "redis_ca",
            )
        return url

    @field_validator("redis_url")
    @classmethod
    def _reject_ambiguous_urls(cls, url: str | None) -> str | None:
        """redis-py and kombu disagree on options and database names, and fail only when they connect."""
        try:
            parts = urlsplit(url or DEFAULT_REDIS_URL)
        except ValueError:
            return url  # the error of the connection explains what is wrong
        if parts.scheme == "unix":
            raise PydanticCustomError("url", "Unix sockets are not supported; use redis://host:port/0")
        if parts.scheme in ("redis", "rediss") and not re.fullmatch(r"/?[0-9]*", parts.path):
            raise PydanticCustomError("url", "the database must be a number, as in redis://host:port/0")
        if option := re.match("[^=&]*", parts.query)[0]:  # type: ignore[index]
            raise PydanticCustomError(
                "url",
                "remove the option {option} from the URL; timeouts are set by connect_timeout_s and "
                "socket_timeout_s",
                {"option": repr(option)},
            )
        return url

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
        return url if self.redis_password_file is None else _with_password(url, self.redis_password_file)

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

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Return the settings of the environment, overridden by the keyword arguments that are not None.

        Raises:
            ConfigurationError: a value is wrong; the message has one sentence about the first.
        """
        return cls._checked(_without_none(given), {})

    @classmethod
    def from_files(cls, **given: Any) -> Self:
        """Return the settings as every ``pagefleet`` command reads them.

        In order of precedence: the keyword arguments that are not None, the environment, ``./.env``, and
        ``./pagefleet.toml`` or the file in PAGEFLEET_CONFIG.

        Raises:
            ConfigurationError: a value is wrong; the message names the first and the file that contains it.
        """
        given = _without_none(given)
        first = {**from_environment(cls), **given}
        origins = dict.fromkeys(first.keys() - given.keys(), "the environment")
        values: dict[str, Any] = {}
        for file, content in cls._files():
            for name in content.keys() - first.keys() - values.keys():
                origins[name], values[name] = str(file), content[name]
        return cls._checked({**values, **given}, origins)

    @classmethod
    def files_read(cls) -> list[Path]:
        """Return the files that :meth:`from_files` reads here, in order of precedence."""
        return [file for file, _content in cls._files()]

    @classmethod
    def _files(cls) -> list[tuple[Path, dict[str, Any]]]:
        config_file = os.environ.get(CONFIG_VARIABLE)
        if config_file == "":
            return []
        files: list[tuple[Path, dict[str, Any]]] = []
        if ENV_FILE.is_file():
            files.append((ENV_FILE, from_env_file(cls, ENV_FILE)))
        # A file in PAGEFLEET_CONFIG must exist; from_toml raises otherwise.
        if config_file is not None or TOML_FILE.is_file():
            toml = Path(config_file or TOML_FILE)
            shared = FleetSettings.model_fields
            files.append((toml, from_toml(toml, shared, cls.model_fields, cls.section)))
        return files

    @classmethod
    def _checked(cls, values: dict[str, Any], origins: dict[str, str]) -> Self:
        try:
            return cls(**values)
        except SettingsError:
            from_environment(cls)
            raise
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = "_".join(str(part) for part in first["loc"][:1]).lower().removeprefix("pagefleet_")
            origin = f" (in {origins[name]})" if name in origins else ""
            raise ConfigurationError(
                f"{name}: {first['msg']}{origin}." if name else f"{first['msg']}."
            ) from None

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


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _with_password(url: str, file: Path) -> str:
    """Raises: ConfigurationError: the file cannot be read, or the URL already contains a password."""
    parts = urlsplit(url)
    if parts.password is not None:
        raise ConfigurationError(
            "redis_password_file: the Redis URL already contains a password; remove one of the two."
        )
    try:
        password = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"redis_password_file: {error}.") from None
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:{quote(password, safe='')}@{host}"))
