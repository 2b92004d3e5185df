"""send_message: ENQUEUE (protocol line 2) through Celery, for a job that exists.

A client's SUBMIT sends the first message itself (``envelope.py``).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import redis

from pagefleet.api.broker.arguments import HIDDEN
from pagefleet.api.broker.celery_app import broker_priority, make_queue
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import RedisUnavailable, StorageFull
from pagefleet.api.protocol.connection import reason_of, safe_url

if TYPE_CHECKING:
    from celery import Celery


def send_message(
    app: Celery, job_id: str, queue_name: str, priority: int, *, kwargs_repr: str | None = None
) -> None:
    """Send the message of a job: little more than its id, because kombu copies messages that it restores.

    Args:
        kwargs_repr: the arguments in Celery's ``task-sent`` event, without private content.

    Raises:
        RedisUnavailable: the broker does not answer or rejects the message.
        StorageFull: the broker is at its memory limit.
    """
    from kombu.exceptions import OperationalError

    kwargs = {"job_id": job_id, "server": "default", "t": time.time()}
    try:
        app.send_task(
            keys.GENERATE_TASK,
            kwargs=kwargs,
            kwargsrepr=kwargs_repr or HIDDEN,
            task_id=job_id,
            queue=make_queue(queue_name),
            priority=broker_priority(priority),
            retry=False,
            # JobCloser writes the result anyway. Without this, Celery subscribes this process to the result
            # of every job, never unsubscribes, and waits 20 s if the server does not answer.
            ignore_result=True,
        )
    except (OperationalError, redis.RedisError, OSError) as error:
        kind = StorageFull if _is_out_of_memory(error) else RedisUnavailable
        raise kind(
            f"The broker at {safe_url(str(app.conf.broker_url))} did not take the job: {reason_of(error)}.",
            job_id=job_id,
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether the cause is the memory limit; kombu wraps redis-py's exceptions."""
    return isinstance(error, redis.OutOfMemoryError) or (
        error.__cause__ is not None and _is_out_of_memory(error.__cause__)
    )
