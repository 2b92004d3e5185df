"""LLM inference on a paged KV cache, as a library.

Does not know the queue, Redis or environment variables. Importing it is quick and does not import torch:
that is imported when an engine loads a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pagefleet.engine.config import EngineConfig, NullOptions
from pagefleet.engine.engine_request import EngineRequest
from pagefleet.engine.errors import (
    ConfigError,
    EngineError,
    InvalidRequestError,
    MissingDependencyError,
    ModelLoadError,
    UnknownModelError,
    UnsafeCheckpointError,
)
from pagefleet.engine.llm_engine import LLMEngine
from pagefleet.engine.model_info import Fingerprint, ModelInfo
from pagefleet.engine.outputs import EngineStats, FinishReason, SequenceOutput
from pagefleet.engine.requests.sequence_factory import PreparedRequest
from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.structured.grammar import Grammar
from pagefleet.engine.structured.structured_output import StructuredOutput

if TYPE_CHECKING:
    from pagefleet.engine.llm import LLM

__all__ = [
    "LLM",
    "ConfigError",
    "EngineConfig",
    "EngineError",
    "EngineRequest",
    "EngineStats",
    "Fingerprint",
    "FinishReason",
    "Grammar",
    "InvalidRequestError",
    "LLMEngine",
    "MissingDependencyError",
    "ModelInfo",
    "ModelLoadError",
    "NullOptions",
    "PreparedRequest",
    "SamplingParams",
    "SequenceOutput",
    "StructuredOutput",
    "UnknownModelError",
    "UnsafeCheckpointError",
]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from pagefleet.engine.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
