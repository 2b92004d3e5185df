"""JobMessageEncoder: the message of a job as kombu stores it, for the script that submits the job.

Celery's ``send_task`` takes a millisecond and two round trips. The script of SUBMIT sends the same message
together with the job, so that no producer can die between the two. ``tests/api/test_envelope.py`` compares it
with Celery's.
"""

from __future__ import annotations

import base64
import os
import time
import uuid
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import to_json

from pagefleet.api.broker.arguments import HIDDEN
from pagefleet.api.broker.celery_app import broker_priority
from pagefleet.api.contract import keys
from pagefleet.api.protocol.operation_types import QueueMessage

if TYPE_CHECKING:
    from celery import Celery

_SEPARATOR: Final = "\x06\x16"
"""kombu's, between the name of a queue and a priority."""


class JobMessageEncoder:
    """Writes Celery messages and ``task-sent`` events of one process.

    Args:
        app: the Celery app, for the names in the messages.
        database: the number of the Redis database, which is part of the name of Celery's event channel.
    """

    def __init__(self, app: Celery, database: int) -> None:
        self._app: Any = app
        self._channel = f"/{database}.celeryev/task.sent"

    def encode(
        self, job_id: str, queue: str, priority: int, *, kwargs_repr: str | None = None
    ) -> QueueMessage:
        """Return the message of a job. For the arguments see :func:`send_message`."""
        step, kwargs_repr = broker_priority(priority), kwargs_repr or HIDDEN
        kwargs = {"job_id": job_id, "server": "default", "t": time.time()}
        message = {
            "body": _encoded([[], kwargs, _NO_CALLBACKS]),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": self._headers(job_id, kwargs_repr),
            "properties": {
                "correlation_id": job_id,
                "reply_to": self._reply_to,
                "kwargsrepr": kwargs_repr,
                "argsrepr": HIDDEN,
                **_properties(2, "", queue, step),
            },
        }
        return QueueMessage(
            f"{queue}{_SEPARATOR}{step}" if step else queue,
            to_json(message).decode(),
            self._channel,
            self._event(job_id, queue, kwargs_repr),
        )

    def _headers(self, job_id: str, kwargs_repr: str) -> dict[str, Any]:
        return {
            "lang": "py",
            "task": keys.GENERATE_TASK,
            "id": job_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": job_id,
            "parent_id": None,
            "argsrepr": HIDDEN,
            "kwargsrepr": kwargs_repr,
            "origin": self._origin,
            "ignore_result": True,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        }

    def _event(self, job_id: str, queue: str, kwargs_repr: str) -> str:
        event = {
            "hostname": self._origin,
            "utcoffset": -time.localtime().tm_gmtoff / 3600,
            "pid": os.getpid(),
            "clock": self._app.clock.forward(),
            "uuid": job_id,
            "root_id": job_id,
            "parent_id": None,
            "name": keys.GENERATE_TASK,
            "args": HIDDEN,
            "kwargs": kwargs_repr,
            "retries": 0,
            "eta": None,
            "expires": None,
            "queue": queue,
            "exchange": "",
            "routing_key": queue,
            "timestamp": time.time(),
            "type": "task-sent",
        }
        message = {
            "body": _encoded(event),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"hostname": self._origin},
            "properties": _properties(1, "celeryev", "task.sent", 0),
        }
        return to_json(message).decode()

    @cached_property
    def _origin(self) -> str:
        from celery.utils.nodenames import anon_nodename

        name: str = anon_nodename()
        return name

    @cached_property
    def _reply_to(self) -> str:
        name: str = self._app.thread_oid
        return name


_NO_CALLBACKS: Final = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def _encoded(body: Any) -> str:
    return base64.b64encode(to_json(body)).decode()


def _properties(delivery_mode: int, exchange: str, routing_key: str, priority: int) -> dict[str, Any]:
    return {
        "delivery_mode": delivery_mode,
        "delivery_info": {"exchange": exchange, "routing_key": routing_key},
        "priority": priority,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }
