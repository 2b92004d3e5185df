"""The producer's settings: one of the two places where the environment is read.

Every field is an environment variable ``PAGEFLEET_<NAME>``; the server is also found under Redis's usual
name, ``REDIS_URL``, where ours is not set. Without either, a stack that ``pagefleet up`` keeps running on
this machine is used.
Commands read ``./.env`` and ``./pagefleet.toml`` too (ops/decisions/0009); a service that only makes a
``FleetClient()`` does not.
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
"""Names a TOML file in place of ``./pagefleet.toml``; empty, commands read no files at all."""


class FleetSettings(BaseSettings):
    """What a producer, a monitor and a worker must agree on."""

    model_config = SettingsConfigDict(
        env_prefix="PAGEFLEET_", env_ignore_empty=True, frozen=True, extra="forbid", populate_by_name=True
    )
    section: ClassVar[str | None] = None
    """The table of a TOML file that this class has for itself."""

    redis_url: str | None = Field(
        None,
        # Not the field's own name among them: in the environment it would be REDIS_URL, and come first.
        validation_alias=AliasChoices("PAGEFLEET_REDIS_URL", "REDIS_URL"),
        description="the server (`PAGEFLEET_REDIS_URL` goes before `REDIS_URL`); by default the one of a "
        "running `pagefleet up`, else port 6379 of this host",
    )
    redis_password_file: FilePath | None = Field(
        None, description="holds the password of the URL's user; a secret that no environment shows"
    )
    home: Path = Field(Path("~/.pagefleet"), description="where `pagefleet up` keeps its data")
    redis_ca: FilePath | None = Field(
        None, description="rediss://: who may vouch for the server; else the system"
    )
    redis_cert: FilePath | None = Field(None, description="rediss://: this client's own certificate")
    redis_key: FilePath | None = Field(None, description="rediss://: the key of that certificate")
    connect_timeout_s: float = Field(3.0, gt=0, description="to reach the server at all")
    socket_timeout_s: float = Field(5.0, gt=0, description="for one reply of the server")
    result_ttl_s: int = Field(3600, gt=0, description="how long an ended job can still be read")
    dead_letter_ttl_s: int = Field(7 * 86400, gt=0, description="how long a dead letter is kept")
    refused_ttl_s: int = Field(
        86400,
        gt=0,
        description="how long a job waits for a worker with the weights that it was begun with; then it is a "
        "dead letter",
    )
    card_ttl_s: float = Field(5.0, ge=0, description="how long a producer believes the model cards it read")
    max_request_bytes: int = Field(
        DEFAULT_MAX_REQUEST_BYTES, gt=0, description="of one request as JSON; producers and workers check it"
    )

    prompt_chars: int = Field(
        0, ge=0, le=1000, description="how much of a prompt Celery's events, and Flower with them, may show"
    )

    @field_validator("redis_url")
    @classmethod
    def _certificates_are_always_checked(cls, url: str | None) -> str | None:
        """redis-py and kombu would take ``?ssl_cert_reqs=none`` from the URL."""
        if url is not None and "ssl_" in url.partition("?")[2]:
            raise PydanticCustomError(
                "tls", "no ssl_ options in the URL: certificates are always checked, redis_ca names the CA"
            )
        return url

    @field_validator("redis_url")
    @classmethod
    def _nothing_that_one_client_misreads(cls, url: str | None) -> str | None:
        """redis-py and kombu disagree on options and on database names, and fail at the first connection."""
        try:
            parts = urlsplit(url or DEFAULT_REDIS_URL)
        except ValueError:
            return url  # the connection's own error says what is wrong with it
        if parts.scheme == "unix":
            raise PydanticCustomError("url", "Unix sockets are not supported; use redis://host:port/0")
        if parts.scheme in ("redis", "rediss") and not re.fullmatch(r"/?[0-9]*", parts.path):
            raise PydanticCustomError("url", "the database must be a number, as in redis://host:port/0")
        if option := re.match("[^=&]*", parts.query)[0]:  # type: ignore[index]
            raise PydanticCustomError(
                "url",
                "the URL has the option {option}, but takes none; remove it (timeouts are settings: "
                "connect_timeout_s, socket_timeout_s)",
                {"option": repr(option)},
            )
        return url

    @model_validator(mode="after")
    def _a_certificate_has_a_key(self) -> Self:
        if (self.redis_cert is None) != (self.redis_key is None):
            raise PydanticCustomError("tls", "redis_cert and redis_key are given together or not at all")
        return self

    @property
    def home_dir(self) -> Path:
        return self.home.expanduser()

    @property
    def stack_file(self) -> Path:
        """Written by a running ``pagefleet up``: ``{"redis_url": ..., "pid": ...}``."""
        return self.home_dir / "stack.json"

    @cached_property
    def url(self) -> str:
        """The server to use: the one named, else the local stack's, else Redis's default port."""
        url = self.redis_url or self._local_stack_url() or DEFAULT_REDIS_URL
        return url if self.redis_password_file is None else _with_password(url, self.redis_password_file)

    @property
    def tls(self) -> dict[str, Any]:
        """How a ``rediss://`` server is checked, in the words of redis-py and kombu; empty without TLS."""
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
        """The settings with the values that are given (not None) in front of the environment's.

        Raises:
            ConfigurationError: one sentence for the first wrong value.
        """
        return cls._checked(_without_none(given), {})

    @classmethod
    def from_files(cls, **given: Any) -> Self:
        """As every ``pagefleet`` command has them: what is given goes before the environment, that before
        ``./.env``, that before ``./pagefleet.toml`` (or the file that PAGEFLEET_CONFIG names).

        Raises:
            ConfigurationError: one sentence for the first wrong value, with the file that it stands in.
        """
        given = _without_none(given)
        first = {**from_environment(cls), **given}
        where = dict.fromkeys(first.keys() - given.keys(), "the environment")
        values: dict[str, Any] = {}
        for file, content in cls._files():
            for name in content.keys() - first.keys() - values.keys():
                where[name], values[name] = str(file), content[name]
        return cls._checked({**values, **given}, where)

    @classmethod
    def files_read(cls) -> list[Path]:
        """The files that :meth:`from_files` finds here, the one that goes first first."""
        return [file for file, _content in cls._files()]

    @classmethod
    def _files(cls) -> list[tuple[Path, dict[str, Any]]]:
        named = os.environ.get(CONFIG_VARIABLE)
        if named == "":
            return []
        files: list[tuple[Path, dict[str, Any]]] = []
        if ENV_FILE.is_file():
            files.append((ENV_FILE, from_env_file(cls, ENV_FILE)))
        # One that is named must be there.
        if named is not None or TOML_FILE.is_file():
            toml = Path(named or TOML_FILE)
            shared = FleetSettings.model_fields
            files.append((toml, from_toml(toml, shared, cls.model_fields, cls.section)))
        return files

    @classmethod
    def _checked(cls, values: dict[str, Any], where: dict[str, str]) -> Self:
        try:
            return cls(**values)
        except SettingsError:
            from_environment(cls)
            raise
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = "_".join(str(part) for part in first["loc"][:1]).lower().removeprefix("pagefleet_")
            file = f" (in {where[name]})" if name in where else ""
            raise ConfigurationError(
                f"{name}: {first['msg']}{file}." if name else f"{first['msg']}."
            ) from None

    def _local_stack_url(self) -> str | None:
        try:
            stack = json.loads(self.stack_file.read_text())
            os.kill(int(stack["pid"]), 0)
            return str(stack["redis_url"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


class FlowerSettings(FleetSettings):
    """What ``pagefleet flower`` needs beside the server."""

    section = "flower"

    flower_address: str = Field(
        "127.0.0.1", min_length=1, description="where it listens; beyond this host only with users"
    )
    flower_port: int = Field(5555, gt=0, lt=65536, description="on which port")
    flower_auth_file: Path | None = Field(None, description="who may come in: lines of user:password")


class GatewaySettings(FleetSettings):
    """What ``pagefleet serve`` needs beside the server."""

    section = "gateway"

    gateway_host: str = Field(
        "127.0.0.1", min_length=1, description="where it listens; beyond this host only with keys"
    )
    gateway_port: int = Field(8000, ge=0, lt=65536, description="on which port; 0 takes a free one")
    gateway_keys_file: Path | None = Field(
        None,
        description="who may come in: what `pagefleet keys` writes; without it everybody who can connect",
    )
    gateway_keys_redis: bool = Field(
        False, description="who may come in stands in Redis: what `pagefleet keys --redis` writes"
    )
    gateway_open: bool = Field(False, description="without keys also beyond this host")
    gateway_strict: bool = Field(False, description="unknown fields are refused, not ignored and named")
    gateway_cors_origins: list[str] = Field(
        default_factory=list, description="pages of which origins may ask from a browser; by default none"
    )
    gateway_timeout_s: float = Field(600.0, gt=0, description="for an answer that is not streamed")
    gateway_keep_alive_s: float = Field(15.0, gt=0, description="a silent stream gets a comment so often")
    gateway_send_timeout_s: float = Field(
        30.0, gt=0, description="a client that takes nothing for so long is cut off"
    )
    gateway_return_within_s: float = Field(
        10.0,
        ge=0,
        description="what a client that can return has to, after it lost its connection, until its job is "
        "cancelled",
    )
    gateway_reads_per_s: float = Field(
        50.0,
        gt=0,
        description="of one API key at each gateway: requests that read or end jobs, or list models",
    )
    gateway_drain_s: float = Field(20.0, ge=0, description="what running requests get to end on SIGTERM")
    gateway_max_connections: int = Field(4096, gt=0, description="open at once; more are refused")
    gateway_max_header_bytes: int = Field(32768, ge=1024, description="of one request's head")
    gateway_max_body_bytes: int = Field(DEFAULT_MAX_REQUEST_BYTES, gt=0, description="of one request's body")
    gateway_header_timeout_s: float = Field(15.0, gt=0, description="for a request's head to come")
    gateway_body_timeout_s: float = Field(60.0, gt=0, description="for a request's body to come")
    gateway_idle_timeout_s: float = Field(
        75.0, ge=1, description="a connection without a request is closed then"
    )


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _with_password(url: str, file: Path) -> str:
    """Raises: ConfigurationError: the file cannot be read, or the URL has a password of its own."""
    parts = urlsplit(url)
    if parts.password is not None:
        raise ConfigurationError("redis_password_file: the Redis URL has a password already.")
    try:
        password = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"redis_password_file: {error}.") from None
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:{quote(password, safe='')}@{host}"))
