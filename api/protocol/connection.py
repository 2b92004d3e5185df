"""Opens connections to Redis, and turns their failures into pagefleet's errors."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import hiredis
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract.errors import ConfigurationError, ProtocolError, RedisUnavailable, StorageFull

_TEMPORARY: Final = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "BUSY ")
"""Error replies that stop without a change of the data, perhaps after an operator's action."""

_SERVER_ERRORS: Final = (
    redis.OutOfMemoryError,
    redis.ReadOnlyError,
    redis.exceptions.NoPermissionError,
    redis.exceptions.NoScriptError,
)

_ASYNC_CONNECTIONS: Final = 8
"""Shared by all tasks of an event loop: a burst of a thousand submits must not open a thousand sockets."""


def _options(settings: FleetSettings) -> dict[str, Any]:
    return {
        # Without it, redis-py parses its package's metadata for each new connection, which takes 5 ms.
        "driver_info": DriverInfo(lib_version=redis.__version__),
        "decode_responses": True,
        # Broken UTF-8 in one job must not stop a reader of many jobs; at worst it becomes unreadable JSON.
        "encoding_errors": "replace",
        "socket_connect_timeout": settings.connect_timeout_s,
        "socket_timeout": settings.socket_timeout_s,
        "socket_keepalive": True,
        "health_check_interval": 30,
        **settings.tls,
    }


def connect(settings: FleetSettings) -> redis.Redis:
    """Return a client whose connections are opened on first use. It does not retry; the callers do."""
    with _url_errors(settings.url):
        return redis.Redis.from_url(
            settings.url, retry=redis.retry.Retry(NoBackoff(), 0), **_options(settings)
        )


def connect_async(settings: FleetSettings, max_connections: int = _ASYNC_CONNECTIONS) -> redis.asyncio.Redis:
    """Like ``connect``, for asyncio. Waits for a free connection if all are in use."""
    with _url_errors(settings.url):
        pool: Any = redis.asyncio.BlockingConnectionPool.from_url(
            settings.url,
            max_connections=max_connections,
            timeout=settings.connect_timeout_s + settings.socket_timeout_s,
            retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
            **_options(settings),
        )
        pool.connection_class = _packing_in_c(pool.connection_class)
        return redis.asyncio.Redis.from_pool(pool)


class _Packing(redis.asyncio.connection.AbstractConnection):
    """Packs commands with hiredis, as redis-py does without asyncio. In Python a SUBMIT takes 50 us."""

    def pack_command(self, *args: Any) -> list[bytes]:
        try:
            # Names of two words, such as SCRIPT LOAD, are two arguments.
            name = args[0].split() if isinstance(args[0], str) else args[:1]
            return [hiredis.pack_command((*name, *args[1:]))]
        except (TypeError, UnicodeEncodeError):
            return super().pack_command(*args)

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        return [chunk for command in commands for chunk in self.pack_command(*command)]


@functools.cache
def _packing_in_c(connection_class: type) -> type:
    return type(f"Packing{connection_class.__name__}", (_Packing, connection_class), {})


def database_of(client: Any) -> int:
    """Return the number of the Redis database that a client uses."""
    return int(client.connection_pool.connection_kwargs.get("db") or 0)


def is_unreadable(error: BaseException) -> bool:
    """Return whether the error means that a key has the wrong type, or a field the wrong form."""
    if not isinstance(error, redis.ResponseError) or isinstance(error, _SERVER_ERRORS):
        return False
    text = str(error)
    # Redis adds "user_script" and the line to every error in a script, so other causes are excluded first.
    # redis-py puts the command in front of the reply if it was part of a pipeline.
    return (
        text.startswith("WRONGTYPE")
        or "caused error: WRONGTYPE" in text
        or ("user_script" in text and not text.startswith(_TEMPORARY))
    )


@contextmanager
def redis_errors(url: str) -> Iterator[None]:
    """Turn redis-py's exceptions into :class:`FleetError`.

    Raises:
        StorageFull: the server is at its memory limit.
        RedisUnavailable: the server does not answer, or rejects the connection, the user or all writes.
        ProtocolError: a value in Redis cannot be read.
    """
    try:
        yield
    except redis.OutOfMemoryError as error:
        raise StorageFull(
            f"Redis at {safe_url(url)} is at its memory limit and accepts no new data; raise its maxmemory, "
            "or wait until results expire."
        ) from error
    except redis.ReadOnlyError as error:
        raise RedisUnavailable(f"Redis at {safe_url(url)} rejects writes: {reason_of(error)}.") from error
    except redis.exceptions.NoPermissionError as error:
        raise RedisUnavailable(
            f"Redis at {safe_url(url)} does not allow this user's command: {reason_of(error)}; "
            "ops/redis/users.acl lists the rights of each user."
        ) from error
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        fault = _certificate_fault(error)
        if fault is not None:
            raise RedisUnavailable(
                f"The certificate of Redis at {safe_url(url)} is not trusted: {fault.rstrip('.')}; "
                "set PAGEFLEET_REDIS_CA to the certificate of its authority."
            ) from error
        raise RedisUnavailable(
            f"No answer from Redis at {safe_url(url)} ({reason_of(error)}); "
            "check that it runs and that REDIS_URL is right. `pagefleet up` starts a local one."
        ) from error
    except redis.InvalidResponse as error:
        raise RedisUnavailable(
            f"The server at {safe_url(url)} is not Redis ({reason_of(error)}); check REDIS_URL."
        ) from error
    except redis.ResponseError as error:
        if str(error).startswith(_TEMPORARY):
            raise RedisUnavailable(f"Redis at {safe_url(url)} rejects writes: {reason_of(error)}.") from error
        if is_unreadable(error):
            raise ProtocolError(f"A value in Redis cannot be read: {reason_of(error)}.") from error
        raise


def safe_url(url: str) -> str:
    """Return the URL without its password, for messages and logs."""
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    user = credentials.partition(":")[0]
    return f"{scheme}{separator}{user}:***{at}{host}" if at else url


def _certificate_fault(error: BaseException | None) -> str | None:
    """Return why the server's certificate is not trusted, if that is a cause of the error."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


def reason_of(error: Exception) -> str:
    """Return the error's reason, without a full stop.

    redis-py puts the command of a pipeline in front, which is removed: its arguments may contain a prompt.
    """
    return (str(error).rpartition(" caused error: ")[2] or type(error).__name__).rstrip(".")


@contextmanager
def _url_errors(url: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigurationError(f"{safe_url(url)!r} is not a Redis URL: {error}") from None
