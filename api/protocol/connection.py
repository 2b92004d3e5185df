"""Connections to Redis: how they are opened, and how their failures become one of our errors."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract.errors import ConfigurationError, ProtocolError, RedisUnavailable, StorageFull

_NOT_NOW: Final = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "BUSY ")
"""Replies that end by themselves, or by an operator's hand."""

_OF_THE_SERVER: Final = (
    redis.OutOfMemoryError,
    redis.ReadOnlyError,
    redis.exceptions.NoPermissionError,
    redis.exceptions.NoScriptError,
)

_ASYNC_CONNECTIONS: Final = 8
"""For all tasks of an event loop: a burst of a thousand submits should not open a thousand sockets."""


def _options(settings: FleetSettings) -> dict[str, Any]:
    return {
        # By itself redis-py parses its package's metadata for each new connection, about 5 ms.
        "driver_info": DriverInfo(lib_version=redis.__version__),
        "decode_responses": True,
        # Broken UTF-8 in one job must not end the reader of all: it becomes unreadable JSON at most.
        "encoding_errors": "replace",
        "socket_connect_timeout": settings.connect_timeout_s,
        "socket_timeout": settings.socket_timeout_s,
        "socket_keepalive": True,
        "health_check_interval": 30,
        **settings.tls,
    }


def connect(settings: FleetSettings) -> redis.Redis:
    """A pool of connections, opened when first used. No retries: who calls knows better when to."""
    with _url_errors(settings.url):
        return redis.Redis.from_url(
            settings.url, retry=redis.retry.Retry(NoBackoff(), 0), **_options(settings)
        )


def connect_async(settings: FleetSettings, max_connections: int = _ASYNC_CONNECTIONS) -> redis.asyncio.Redis:
    with _url_errors(settings.url):
        pool: redis.asyncio.BlockingConnectionPool = redis.asyncio.BlockingConnectionPool.from_url(
            settings.url,
            max_connections=max_connections,
            timeout=settings.connect_timeout_s + settings.socket_timeout_s,
            retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
            **_options(settings),
        )
        return redis.asyncio.Redis.from_pool(pool)


def is_unreadable(error: BaseException) -> bool:
    """Whether a key is not of the type, or a field not of the form, that it should be."""
    if not isinstance(error, redis.ResponseError) or isinstance(error, _OF_THE_SERVER):
        return False
    text = str(error)
    # The line of the script stands in whatever stopped it, also where that is no fault of the key.
    # redis-py puts the command before the reply where it was one of a pipeline.
    return (
        text.startswith("WRONGTYPE")
        or "caused error: WRONGTYPE" in text
        or ("user_script" in text and not text.startswith(_NOT_NOW))
    )


@contextmanager
def redis_errors(url: str) -> Iterator[None]:
    """Turns every way in which a server can be out of reach into :class:`RedisUnavailable`."""
    try:
        yield
    except redis.OutOfMemoryError as error:
        raise StorageFull(
            f"Redis at {safe_url(url)} is at its memory limit and takes nothing new; results that expire "
            "make room, and so does a higher maxmemory."
        ) from error
    except redis.ReadOnlyError as error:
        raise RedisUnavailable(f"Redis at {safe_url(url)} takes no writes: {reason_of(error)}.") from error
    except redis.exceptions.NoPermissionError as error:
        raise RedisUnavailable(
            f"Redis at {safe_url(url)} does not allow that to this user: {reason_of(error)}; "
            "ops/redis/users.acl says what each needs."
        ) from error
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        refusal = _certificate_refusal(error)
        if refusal is not None:
            raise RedisUnavailable(
                f"The certificate of Redis at {safe_url(url)} was refused: {refusal.rstrip('.')}; "
                "PAGEFLEET_REDIS_CA names the authority to trust."
            ) from error
        raise RedisUnavailable(
            f"No answer from Redis at {safe_url(url)} ({reason_of(error)}); "
            "is it running, and does REDIS_URL name it? `pagefleet up` starts a local one."
        ) from error
    except redis.InvalidResponse as error:
        raise RedisUnavailable(
            f"What answers at {safe_url(url)} is no Redis ({reason_of(error)}); look at REDIS_URL."
        ) from error
    except redis.ResponseError as error:
        if str(error).startswith(_NOT_NOW):
            raise RedisUnavailable(
                f"Redis at {safe_url(url)} takes no writes: {reason_of(error)}."
            ) from error
        if is_unreadable(error):
            raise ProtocolError(f"What Redis holds there cannot be read: {reason_of(error)}.") from error
        raise


def safe_url(url: str) -> str:
    """The URL without its password, fit for messages and logs."""
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    user = credentials.partition(":")[0]
    return f"{scheme}{separator}{user}:***{at}{host}" if at else url


def _certificate_refusal(error: BaseException | None) -> str | None:
    """Why the server was not believed; redis-py and kombu wrap what ``ssl`` raises."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


def reason_of(error: Exception) -> str:
    """Without the command, which redis-py puts before the reply if it was one of a pipeline: a prompt may be
    among its arguments."""
    return (str(error).rpartition(" caused error: ")[2] or type(error).__name__).rstrip(".")


@contextmanager
def _url_errors(url: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigurationError(f"{safe_url(url)!r} is not a Redis URL: {error}") from None
