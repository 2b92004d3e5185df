"""The edges of the package: configuration, errors and the public names."""

from __future__ import annotations

import importlib.util
import pickle
from typing import Any

import pytest

import pagefleet.engine
from pagefleet.engine.config import EngineConfig, NullOptions
from pagefleet.engine.errors import ConfigError, EngineError, InvalidRequestError, MissingDependencyError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("dtype", "int8"),
        ("device", ""),
        ("backend", "cuda"),
        ("block_size", 0),
        ("num_blocks", 0),
        ("kv_memory_bytes", -1),
        ("max_num_seqs", 0),
        ("max_num_seqs", True),
        ("max_num_batched_tokens", 0.5),
        ("max_model_len", 0),
        ("num_threads", 0),
    ],
)
def test_a_field_that_cannot_be_is_named(field: str, value: Any):
    with pytest.raises(ConfigError, match=rf"^{field} must .*\.$"):
        EngineConfig(**{"model": "m", field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step_time_s", -0.1),
        ("step_time_s", float("nan")),
        ("vocab_size", 258),
        ("max_model_len", 0),
        ("num_blocks", 0),
    ],
)
def test_a_null_model_that_cannot_be_is_named(field: str, value: Any):
    with pytest.raises(ValueError, match=rf"^null\.{field} must "):
        NullOptions(**{field: value})


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError("top_k is wrong.", "invalid_value", "top_k"),
        MissingDependencyError("torch", "pip install 'pagefleet[worker]'"),
    ],
)
def test_an_error_survives_the_way_to_another_process(error: EngineError):
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_a_missing_dependency_names_the_command():
    error = MissingDependencyError("torch", "pip install 'pagefleet[worker]'")
    assert "`pip install 'pagefleet[worker]'`" in str(error)


def test_the_public_names_are_these():
    assert sorted(pagefleet.engine.__all__) == [
        "ConfigError",
        "EngineConfig",
        "EngineError",
        "EngineRequest",
        "EngineStats",
        "Fingerprint",
        "FinishReason",
        "Grammar",
        "InvalidRequestError",
        "LLM",
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
    for name in set(pagefleet.engine.__all__) - {"LLM"}:
        assert hasattr(pagefleet.engine, name)
    # LLM brings torch, so it is looked up, not imported.
    assert importlib.util.find_spec("pagefleet.engine.llm") is not None
    with pytest.raises(AttributeError, match="no attribute 'Unknown'"):
        pagefleet.engine.Unknown  # noqa: B018
