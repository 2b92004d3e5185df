"""The frequencies of rotary position embeddings (RoPE), from config.json. Does not know weights or attention.

They are computed in float32 for every dtype of the model: the models were trained with these, and a float64
run must use the same angles to be comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pagefleet.engine.errors import ModelLoadError

DEFAULT_THETA = 10_000.0


def inverse_frequencies(config: Mapping[str, Any], head_dim: int) -> torch.Tensor:
    """Return the frequencies, float32 [head_dim / 2], in radians per position.

    Raises ModelLoadError if the kind of scaling is not supported.
    """
    parameters = rope_parameters(config)
    kind = str(parameters.get("rope_type", "default"))
    scale = _SCALINGS.get(kind)
    if scale is None:
        raise ModelLoadError(
            f"config.json: RoPE scaling {kind!r} is not supported; use a model with one of "
            f"{', '.join(sorted(_SCALINGS))}."
        )
    if float(parameters.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ModelLoadError(
            "config.json: partial_rotary_factor: models that rotate only a part of each head are not "
            "supported."
        )
    theta = float(parameters.get("rope_theta", DEFAULT_THETA))
    inv_freq = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    return scale(inv_freq, parameters)


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `rope_parameters` (transformers 5), also if config.json has `rope_theta` and `rope_scaling`
    (older).

    Raises ModelLoadError if the layers of the model have different rotary embeddings.
    """
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise ModelLoadError(
            "config.json: rope_parameters: layers with different rotary embeddings are not supported."
        )
    parameters.setdefault("rope_type", parameters.get("type", "default"))
    for key in ("rope_theta", "partial_rotary_factor"):
        if config.get(key) is not None:
            parameters.setdefault(key, config[key])
    return parameters


def _default(inv_freq: torch.Tensor, _parameters: Mapping[str, Any]) -> torch.Tensor:
    return inv_freq


def _linear(inv_freq: torch.Tensor, parameters: Mapping[str, Any]) -> torch.Tensor:
    return inv_freq / float(parameters["factor"])


def _llama3(inv_freq: torch.Tensor, parameters: Mapping[str, Any]) -> torch.Tensor:
    """Scale as Llama 3.1: divide low frequencies by `factor`, keep high ones, interpolate those in
    between."""
    factor = float(parameters["factor"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    turns = float(parameters["original_max_position_embeddings"]) * inv_freq / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * inv_freq / factor + kept * inv_freq


_SCALINGS: Mapping[str, Callable[[torch.Tensor, Mapping[str, Any]], torch.Tensor]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
}
