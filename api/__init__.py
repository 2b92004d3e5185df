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
    from pagefleet.api.async_client import AsyncFleetClient
    from pagefleet.api.client import FleetClient
    from pagefleet.api.errors import (
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
    from pagefleet.api.fleet import Fleet, FleetStatus, QueueStatus, RunningJob
    from pagefleet.api.messages import (
        ChatMessage,
        ChoiceResult,
        JobResult,
        JobState,
        ModelCard,
        SamplingParams,
        WorkerStatus,
    )
    from pagefleet.api.settings import FleetSettings
    from pagefleet.api.stream import Chunk
    from pagefleet.api.structured_outputs import StructuredOutputs
    from pagefleet.api.token_stream import AsyncTokenStream, TokenStream

__all__ = [
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
]

# Imported when first asked for: a service pays for redis and pydantic when it makes its client, not before.
_HOMES: Final = {
    "AsyncFleetClient": "async_client",
    "AsyncTokenStream": "token_stream",
    "ChatMessage": "messages",
    "ChoiceResult": "messages",
    "Chunk": "stream",
    "ConfigurationError": "errors",
    "ContextTooLong": "errors",
    "DeadlineExceeded": "errors",
    "Fleet": "fleet",
    "FleetClient": "client",
    "FleetError": "errors",
    "FleetSettings": "settings",
    "FleetStatus": "fleet",
    "InvalidRequest": "errors",
    "JobDead": "errors",
    "JobDeleted": "errors",
    "JobError": "errors",
    "JobExists": "errors",
    "JobFailed": "errors",
    "JobLost": "errors",
    "JobNotFound": "errors",
    "JobResult": "messages",
    "JobState": "messages",
    "MissingExtra": "errors",
    "ModelCard": "messages",
    "NoAnswer": "errors",
    "ProtocolError": "errors",
    "QueueFull": "errors",
    "QueueStatus": "fleet",
    "RedisUnavailable": "errors",
    "RunningJob": "fleet",
    "SamplingParams": "messages",
    "StorageFull": "errors",
    "StreamTimeout": "errors",
    "StructuredOutputs": "structured_outputs",
    "TokenStream": "token_stream",
    "UnknownModel": "errors",
    "UnknownParameter": "errors",
    "WorkerStatus": "messages",
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
