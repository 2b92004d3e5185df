"""ENQUEUE (protocol line 2): the one way a job's message reaches the broker."""

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
    app: Celery, job_id: str, queue_name: str, priority: int, *, shown: str | None = None
) -> None:
    """ENQUEUE (protocol line 2): a thin message, the id and nothing else that could be large.

    Args:
        shown: what Celery's ``task-sent`` event says of the arguments.

    Raises:
        RedisUnavailable: the broker did not take it.
    """
    from kombu.exceptions import OperationalError

    kwargs = {"job_id": job_id, "server": "default", "t": time.time()}
    try:
        app.send_task(
            keys.GENERATE_TASK,
            kwargs=kwargs,
            kwargsrepr=shown or HIDDEN,
            task_id=job_id,
            queue=make_queue(queue_name),
            priority=broker_priority(priority),
            retry=False,
            # JobCloser writes the result all the same. Without this, Celery subscribes this process to the
            # result of each job and never lets go, and waits 20 s for a server that is away.
            ignore_result=True,
        )
    except (OperationalError, redis.RedisError, OSError) as error:
        kind = StorageFull if _is_out_of_memory(error) else RedisUnavailable
        raise kind(
            f"The broker at {safe_url(str(app.conf.broker_url))} did not take the job: {reason_of(error)}",
            job_id=job_id,
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """kombu wraps what redis-py raises."""
    return isinstance(error, redis.OutOfMemoryError) or (
        error.__cause__ is not None and _is_out_of_memory(error.__cause__)
    )
