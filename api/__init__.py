"""What a backend service imports: the client, its errors and the models of the wire contract.

::

    from pagefleet.api import FleetClient

    for chunk in FleetClient().generate("Once upon a time", max_tokens=64):
        print(chunk.text, end="", flush=True)
"""

from __future__ import annotations

from pagefleet.api.async_client import AsyncFleetClient
from pagefleet.api.client import FleetClient
from pagefleet.api.errors import (
    ConfigurationError,
    ContextTooLong,
    FleetError,
    InvalidRequest,
    JobDead,
    JobError,
    JobFailed,
    JobLost,
    JobNotFound,
    MissingExtra,
    ProtocolError,
    QueueFull,
    RedisUnavailable,
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
from pagefleet.api.token_stream import AsyncTokenStream, TokenStream

__all__ = [
    "AsyncFleetClient",
    "AsyncTokenStream",
    "ChatMessage",
    "ChoiceResult",
    "Chunk",
    "ConfigurationError",
    "ContextTooLong",
    "Fleet",
    "FleetClient",
    "FleetError",
    "FleetSettings",
    "FleetStatus",
    "InvalidRequest",
    "JobDead",
    "JobError",
    "JobFailed",
    "JobLost",
    "JobNotFound",
    "JobResult",
    "JobState",
    "MissingExtra",
    "ModelCard",
    "ProtocolError",
    "QueueFull",
    "QueueStatus",
    "RedisUnavailable",
    "RunningJob",
    "SamplingParams",
    "StreamTimeout",
    "TokenStream",
    "UnknownModel",
    "UnknownParameter",
    "WorkerStatus",
]
