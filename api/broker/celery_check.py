"""check_celery_app: checks whether a Celery app can send jobs to a fleet and get their results.

A service that uses only Celery gets no error otherwise: a message on a different queue is not read, and a
result under a different key is not found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.api.protocol.connection import redis_errors, safe_url

if TYPE_CHECKING:
    from celery import Celery


def check_celery_app(app: Celery) -> None:
    """Compare an app's configuration with what pagefleet's workers read and write. Call it at startup.

    Raises:
        ConfigurationError: names the first setting that would leave a caller without an answer, and the fix.
        RedisUnavailable: the broker or the result backend does not answer.
    """
    for fault in _faults(app):
        raise ConfigurationError(fault)


def _faults(app: Celery) -> Iterator[str]:
    conf: Any = app.conf
    broker = str(conf.broker_url)
    if not broker.startswith(("redis://", "rediss://")):
        yield f"broker_url: {safe_url(broker)} is not a Redis URL; use the URL of the fleet's Redis."
    if (conf.broker_transport_options or {}).get("global_keyprefix"):
        yield "broker_transport_options: remove global_keyprefix; workers read the queues without a prefix."
    if conf.task_protocol != 2:
        yield f"task_protocol: must be 2, not {conf.task_protocol}."
    if conf.task_serializer != "json":
        yield f"task_serializer: must be 'json', not {conf.task_serializer!r}."
    if conf.task_compression:
        yield f"task_compression: must be None, not {conf.task_compression!r}."
    yield from _backend_faults(app)
    with redis_errors(broker), app.connection_for_write() as connection:
        if not connection.default_channel.client.exists(keys.MODELS):
            yield f"broker_url: no pagefleet worker has run on {safe_url(broker)}; use the fleet's Redis."


def _backend_faults(app: Celery) -> Iterator[str]:
    from celery.backends.redis import RedisBackend

    backend: Any = app.backend
    name = safe_url(str(app.conf.result_backend or "none"))
    if not isinstance(backend, RedisBackend):
        yield (
            f"result_backend: {name} is not Redis; workers store results in the fleet's Redis only, so that "
            "get() would wait forever. Use the broker's URL as result_backend, or FleetClient to read jobs."
        )
        return
    if backend.task_keyprefix != keys.result("").encode():
        yield (
            "result_backend_transport_options: remove global_keyprefix; workers store results under "
            f"{keys.result('')}<id>, so that get() would wait forever."
        )
    if "application/json" not in backend.accept:
        yield "result_accept_content: add 'json'."
    with redis_errors(name):
        if not backend.client.exists(keys.MODELS):
            yield f"result_backend: {name} is not the fleet's Redis; use the broker's URL and database."
