"""The errors that pagefleet raises in a producer, as one tree.

::

    FleetError
    ├── InvalidRequest          the request is wrong; ``param`` names the field
    │   ├── ContextTooLong      prompt does not fit the model's context
    │   └── UnknownParameter    an unknown field; the message has the nearest known name
    ├── UnknownModel            no worker has ever served this model in this fleet
    ├── JobExists               ``job_id`` belongs to another request
    ├── QueueFull               a limit of the queue is reached; nothing was written
    ├── NoAnswer                no worker answered ``tokenize`` in time; try again
    ├── JobError                the job itself failed; ``job_id`` names it
    │   ├── JobFailed           its worker reported a failure
    │   ├── JobDead             given up because its workers died repeatedly
    │   ├── DeadlineExceeded    its deadline passed; only in Celery's result, a stream just ends
    │   ├── JobLost             the server lost the job, for example at a restart without its data
    │   │   └── JobDeleted      the job was deleted while it was read
    │   └── JobNotFound         the job does not exist, or its result expired
    ├── StreamTimeout           no token arrived within the idle timeout; the job continues
    ├── RedisUnavailable        the server cannot be reached
    │   └── StorageFull         the server is at its memory limit; nothing was written
    ├── MissingExtra            an optional part is not installed; the message has the command
    ├── ConfigurationError      a setting or an option is invalid
    └── ProtocolError           this version cannot read a message
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Self

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
    """The root of the tree. ``code`` is stable and machine-readable. ``param`` names the field at fault."""

    code = "fleet_error"

    def __init__(self, message: str, *, param: str | None = None, job_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.job_id = job_id

    def copy(self) -> Self:
        """Return an equal error to raise elsewhere, with the same cause."""
        error = type(self)(self.message, param=self.param, job_id=self.job_id)
        error.__cause__ = self.__cause__
        return error


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
    """Return the exception for a worker's ``{code, message, param}``.

    An unknown code becomes :class:`JobFailed` with the same message.
    """
    return _BY_CODE.get(code, JobFailed)(message, param=param, job_id=job_id)
