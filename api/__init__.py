"""What a backend service imports: the client, its errors and the models of the wire contract.

::

    from pagefleet.api import FleetClient

    for chunk in FleetClient().generate("Once upon a time", max_tokens=64):
        print(chunk.text, end="", flush=True)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pagefleet.api.broker.celery_check import check_celery_app
    from pagefleet.api.client.asynchronous.client import AsyncFleetClient
    from pagefleet.api.client.asynchronous.fleet import AsyncFleet
    from pagefleet.api.client.asynchronous.token_stream import AsyncTokenStream
    from pagefleet.api.client.job_options import JobOptions
    from pagefleet.api.client.stream import Chunk
    from pagefleet.api.client.synchronous.client import FleetClient
    from pagefleet.api.client.synchronous.fleet import Fleet
    from pagefleet.api.client.synchronous.token_stream import TokenStream
    from pagefleet.api.config.settings import FleetSettings
    from pagefleet.api.contract.errors import (
        ConfigurationError,
        ContextTooLong,
        DeadlineExceeded,
        FleetError,
        InvalidRequest,
        JobDead,
        JobDeleted,
        JobError,
        JobExists,
        JobFailed,
        JobLost,
        JobNotFound,
        MissingExtra,
        NoAnswer,
        ProtocolError,
        QueueFull,
        RedisUnavailable,
        StorageFull,
        StreamTimeout,
        UnknownModel,
        UnknownParameter,
    )
    from pagefleet.api.contract.fleet_status import FleetStatus, QueueStatus, RunningJob
    from pagefleet.api.contract.keys import queue_name
    from pagefleet.api.contract.messages import (
        ChatMessage,
        ChoiceResult,
        JobResult,
        JobState,
        ModelCard,
        SamplingParams,
        WorkerStatus,
    )
    from pagefleet.api.contract.structured_outputs import StructuredOutputs

__all__ = [
    "AsyncFleet",
    "AsyncFleetClient",
    "AsyncTokenStream",
    "ChatMessage",
    "ChoiceResult",
    "Chunk",
    "ConfigurationError",
    "ContextTooLong",
    "DeadlineExceeded",
    "Fleet",
    "FleetClient",
    "FleetError",
    "FleetSettings",
    "FleetStatus",
    "InvalidRequest",
    "JobDead",
    "JobDeleted",
    "JobError",
    "JobExists",
    "JobFailed",
    "JobLost",
    "JobNotFound",
    "JobOptions",
    "JobResult",
    "JobState",
    "MissingExtra",
    "ModelCard",
    "NoAnswer",
    "ProtocolError",
    "QueueFull",
    "QueueStatus",
    "RedisUnavailable",
    "RunningJob",
    "SamplingParams",
    "StorageFull",
    "StreamTimeout",
    "StructuredOutputs",
    "TokenStream",
    "UnknownModel",
    "UnknownParameter",
    "WorkerStatus",
    "check_celery_app",
    "queue_name",
]

# Imported when first asked for: a service pays for redis and pydantic when it makes its client, not before.
_HOMES: Final = {
    "AsyncFleet": "client.asynchronous.fleet",
    "AsyncFleetClient": "client.asynchronous.client",
    "AsyncTokenStream": "client.asynchronous.token_stream",
    "ChatMessage": "contract.messages",
    "ChoiceResult": "contract.messages",
    "Chunk": "client.stream",
    "ConfigurationError": "contract.errors",
    "ContextTooLong": "contract.errors",
    "DeadlineExceeded": "contract.errors",
    "Fleet": "client.synchronous.fleet",
    "FleetClient": "client.synchronous.client",
    "FleetError": "contract.errors",
    "FleetSettings": "config.settings",
    "FleetStatus": "contract.fleet_status",
    "InvalidRequest": "contract.errors",
    "JobDead": "contract.errors",
    "JobDeleted": "contract.errors",
    "JobError": "contract.errors",
    "JobExists": "contract.errors",
    "JobFailed": "contract.errors",
    "JobLost": "contract.errors",
    "JobNotFound": "contract.errors",
    "JobOptions": "client.job_options",
    "JobResult": "contract.messages",
    "JobState": "contract.messages",
    "MissingExtra": "contract.errors",
    "ModelCard": "contract.messages",
    "NoAnswer": "contract.errors",
    "ProtocolError": "contract.errors",
    "QueueFull": "contract.errors",
    "QueueStatus": "contract.fleet_status",
    "RedisUnavailable": "contract.errors",
    "RunningJob": "contract.fleet_status",
    "SamplingParams": "contract.messages",
    "StorageFull": "contract.errors",
    "StreamTimeout": "contract.errors",
    "StructuredOutputs": "contract.structured_outputs",
    "TokenStream": "client.synchronous.token_stream",
    "UnknownModel": "contract.errors",
    "UnknownParameter": "contract.errors",
    "WorkerStatus": "contract.messages",
    "check_celery_app": "broker.celery_check",
    "queue_name": "contract.keys",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
