"""`rope_parameters` of config.json from a GGUF file's metadata and its tensors of rotary factors."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.gguf.header import GGUFHeader
from pagefleet.engine.files.gguf.weights import read_rows

__all__ = ["ROPE_TENSORS", "rope_parameters"]

ROPE_TENSORS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_DEFAULT_THETA: Final = 10_000.0
_LLAMA3: Final = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""The parameters of all Llama 3.1 to 3.3 models, apart from the factor."""
_TOLERANCE: Final = 1e-5


def rope_parameters(header: GGUFHeader, head_dim: int) -> dict[str, Any]:
    """Return the parameters of a model whose layers all have the same rotary embeddings.

    Raises ModelLoadError if the kind of scaling is not known.
    """
    theta = header.get("rope.freq_base", _DEFAULT_THETA)
    rotated = header.get("rope.dimension_count", head_dim)
    found = {"rope_theta": theta, **_scaling(header, theta, rotated)}
    if rotated != head_dim:
        found["partial_rotary_factor"] = rotated / head_dim
    return found


def _scaling(header: GGUFHeader, theta: float, rotated: int) -> dict[str, Any]:
    kind = header.get("rope.scaling.type", "none")
    factor = header.get("rope.scaling.factor", header.get("rope.scale_linear", 1.0))
    if ROPE_TENSORS[0] in header.tensors:
        return _from_factors(header, _factors(header, ROPE_TENSORS[0]), theta, rotated)
    if ROPE_TENSORS[1] in header.tensors:
        return _longrope(header)
    if kind == "yarn":
        return _yarn(header, factor)
    if kind not in ("none", "linear"):
        raise ModelLoadError(
            f"The RoPE scaling {kind!r} (rope.scaling.type) is not supported without tensors of factors; use "
            "the model's safetensors checkpoint."
        )
    return {"rope_type": "linear", "factor": factor} if factor not in (0.0, 1.0) else {"rope_type": "default"}


def _factors(header: GGUFHeader, name: str) -> NDArray[np.float32]:
    return read_rows(header.tensors[name], 0, 1).ravel()


def _from_factors(
    header: GGUFHeader, factors: NDArray[np.float32], theta: float, rotated: int
) -> dict[str, Any]:
    """Return the scaling that divides each frequency by its factor.

    The factors of Llama 3 are written as its own parameters; any others as those of longrope.
    """
    factor = float(factors.max())
    frequencies = theta ** -(np.arange(0, rotated, 2) / rotated)
    if np.allclose(factors, _llama3_factors(frequencies, factor), rtol=_TOLERANCE):
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    listed = [float(each) for each in factors]
    return {
        "rope_type": "longrope",
        "short_factor": listed,
        "long_factor": listed,
        "attention_factor": 1.0,
        "original_max_position_embeddings": header.get("context_length"),
    }


def _llama3_factors(frequencies: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    turns = _LLAMA3["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clip(0.0, 1.0)
    factors: NDArray[np.float64] = 1 / ((1 - kept) / factor + kept)
    return factors


def _longrope(header: GGUFHeader) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": [float(each) for each in _factors(header, ROPE_TENSORS[1])],
        "short_factor": [float(each) for each in _factors(header, ROPE_TENSORS[2])],
    }
    original = header.get("rope.scaling.original_context_length")
    scale = header.get("context_length") / original
    computed = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    found["original_max_position_embeddings"] = original
    attention = header.get("rope.scaling.attn_factor", computed)
    # Rounded in the file, but exact if transformers computes it.
    if not math.isclose(attention, computed, rel_tol=_TOLERANCE):
        found["attention_factor"] = attention
    return found


def _yarn(header: GGUFHeader, factor: float) -> dict[str, Any]:
    optional = {
        "original_max_position_embeddings": header.get("rope.scaling.original_context_length"),
        "attention_factor": header.get(
            "rope.scaling.yarn_attn_factor", header.get("rope.scaling.attn_factor")
        ),
        "beta_fast": header.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": header.get("rope.scaling.yarn_beta_slow"),
        "mscale_all_dim": header.get("rope.scaling.yarn_log_multiplier"),
    }
    if optional["mscale_all_dim"] is not None:
        # llama.cpp assumes the numerator.
        optional["mscale"] = 1.0
    found = {key: value for key, value in optional.items() if value is not None}
    return {"rope_type": "yarn", "factor": factor, **found}
