"""Everything that pagefleet raises at a producer, as one tree.

::

    FleetError
    ├── InvalidRequest          the request is wrong; ``param`` names the field
    │   ├── ContextTooLong      prompt does not fit the model's context
    │   └── UnknownParameter    a field nobody knows (with the nearest known name)
    ├── UnknownModel            no worker ever served this model here
    ├── JobExists               ``job_id`` is the id of another request
    ├── QueueFull               the queue's depth limit is reached; nothing was written
    ├── NoAnswer                no worker answered a question in time (``tokenize``); ask again
    ├── JobError                the job itself ended badly; ``job_id`` names it
    │   ├── JobFailed           the worker reported a failure
    │   ├── JobDead             given up after repeated worker deaths
    │   ├── DeadlineExceeded    its deadline passed (Celery's result only: a stream just ends)
    │   ├── JobLost             the server forgot the job (restarted without its data)
    │   │   └── JobDeleted      somebody deleted it while it was read
    │   └── JobNotFound         no such job (never was, or its result expired)
    ├── StreamTimeout           nothing arrived for the caller's timeout; the job goes on
    ├── RedisUnavailable        no connection to the server
    │   └── StorageFull         the server is at its memory limit; nothing was written
    ├── MissingExtra            a part is not installed; the message names the pip command
    ├── ConfigurationError      a setting or an option is wrong
    └── ProtocolError           a message that this version cannot read
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

__all__ = [
    "ConfigurationError",
    "ContextTooLong",
    "DeadlineExceeded",
    "FleetError",
    "InvalidRequest",
    "JobDead",
    "JobDeleted",
    "JobError",
    "JobExists",
    "JobFailed",
    "JobLost",
    "JobNotFound",
    "MissingExtra",
    "NoAnswer",
    "ProtocolError",
    "QueueFull",
    "RedisUnavailable",
    "StorageFull",
    "StreamTimeout",
    "UnknownModel",
    "UnknownParameter",
    "error_from_code",
]


class FleetError(Exception):
    """Root of the tree. ``code`` is stable and machine-readable; the message is one clear sentence."""

    code = "fleet_error"

    def __init__(self, message: str, *, param: str | None = None, job_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.job_id = job_id


class InvalidRequest(FleetError, ValueError):
    code = "invalid_request"


class ContextTooLong(InvalidRequest):
    code = "context_too_long"


class UnknownParameter(InvalidRequest):
    code = "unknown_parameter"


class UnknownModel(FleetError):
    code = "unknown_model"


class JobExists(FleetError):
    code = "job_exists"


class QueueFull(FleetError):
    code = "queue_full"


class NoAnswer(FleetError):
    code = "no_answer"


class JobError(FleetError):
    code = "job_error"


class JobFailed(JobError):
    code = "job_failed"


class JobDead(JobError):
    code = "job_dead"


class DeadlineExceeded(JobError, TimeoutError):
    code = "deadline_exceeded"


class JobLost(JobError):
    code = "job_lost"


class JobDeleted(JobLost):
    code = "job_deleted"


class JobNotFound(JobError):
    code = "job_not_found"


class StreamTimeout(FleetError, TimeoutError):
    code = "stream_timeout"


class RedisUnavailable(FleetError, ConnectionError):
    code = "redis_unavailable"


class StorageFull(RedisUnavailable):
    code = "storage_full"


class MissingExtra(FleetError, ImportError):
    code = "missing_extra"


class ConfigurationError(FleetError):
    code = "configuration"


class ProtocolError(FleetError):
    code = "protocol"


def _tree(root: type[FleetError]) -> Iterator[type[FleetError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


_BY_CODE: Final[dict[str, type[FleetError]]] = {error.code: error for error in _tree(FleetError)}


def error_from_code(
    code: str, message: str, *, param: str | None = None, job_id: str | None = None
) -> FleetError:
    """The exception that a worker's ``{code, message, param}`` stands for.

    A code that this version does not know becomes a :class:`JobFailed` that keeps the message.
    """
    return _BY_CODE.get(code, JobFailed)(message, param=param, job_id=job_id)
