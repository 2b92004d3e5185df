"""Checks of Redis URLs, and URLs with a password from a file."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic_core import PydanticCustomError

from pagefleet.api.contract.errors import ConfigurationError


def check_redis_url(url: str) -> str:
    """Return the URL unless redis-py or kombu would misinterpret it.

    They would accept ``?ssl_cert_reqs=none``, which disables the verification of certificates. They
    disagree on other options and on database names, and fail only when they connect.

    Raises:
        PydanticCustomError: with the change to make.
    """
    if "ssl_" in url.partition("?")[2]:
        raise PydanticCustomError(
            "tls",
            "remove the ssl_ options from the URL; certificates are always verified, against the CA in "
            "redis_ca",
        )
    try:
        parts = urlsplit(url)
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


def add_password(url: str, file: Path) -> str:
    """Return the URL with the password in ``file``.

    Raises:
        ConfigurationError: the file cannot be read, or the URL already contains a password.
    """
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
