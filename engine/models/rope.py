"""Rotary position embeddings (RoPE) from config.json, of every kind that transformers knows. Does not know
weights or attention.

Frequencies are computed in float32 for every dtype of the model: the models were trained with these, and a
float64 run must use the same angles to be comparable.

transformers changes the frequencies of the kinds dynamic and longrope when a text becomes longer than the
trained context, while its cached keys keep the earlier ones. Here `max_model_len` chooses them once, so that
a token depends only on the tokens before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.model_spec import RopeSpec
from pagefleet.engine.models.config_reader import ConfigReader

__all__ = ["longest_context", "read_rope", "rope_parameters", "temperature", "with_default_rope"]

DEFAULT_THETA = 10_000.0
MAX_HEAD_DIM = 2**16
"""Heads have some hundred elements. A larger value would only exhaust the memory."""


class _Rope(NamedTuple):
    """What the frequencies are computed from."""

    theta: float
    size: int
    """Rotated elements of a head."""
    parameters: ConfigReader
    trained_len: int
    """The trained context length, in tokens."""
    max_position_embeddings: int
    max_model_len: int


class _Scaled(NamedTuple):
    inv_freq: torch.Tensor
    scaling: float = 1.0
    variant: str = ""


def read_rope(
    config: ConfigReader,
    *,
    layer_type: str | None = None,
    head_dim: int | None = None,
    partial: float = 1.0,
    theta: float = DEFAULT_THETA,
    interleaved: bool = False,
    start: int = 0,
) -> RopeSpec:
    """Return the rotation that config.json describes.

    Args:
        layer_type: the kind of layer, if `rope_parameters` has different values for each kind.
        head_dim: elements of a head. None: from config.json.
        partial: the rotated share of a head, unless config.json has it.
        theta: the base of the frequencies, unless config.json has it.

    Raises ModelLoadError if the kind is unknown or a value is missing.
    """
    parameters = rope_parameters(config, layer_type)
    kind = str(parameters.get("rope_type", "default"))
    scale = _KINDS.get(kind)
    if scale is None:
        raise ModelLoadError(
            f"config.json: RoPE scaling {kind!r} is not supported; use a model with one of "
            f"{', '.join(sorted(_KINDS))}."
        )
    reader = ConfigReader(parameters)
    longest = config.integer("max_position_embeddings")
    size = _rotated_size(head_dim or config.head_dim, reader.number("partial_rotary_factor", partial))
    rope = _Rope(
        theta=reader.number("rope_theta", theta),
        size=size,
        parameters=reader,
        trained_len=_trained_len(config, parameters),
        max_position_embeddings=longest,
        max_model_len=min(config.max_model_len or longest, longest_context(config)),
    )
    scaled = scale(rope)
    if not torch.isfinite(scaled.inv_freq).all():
        raise ModelLoadError(
            f"config.json: the values of RoPE scaling {kind!r} give frequencies that are not finite; "
            "download the file again."
        )
    return RopeSpec(scaled.inv_freq, scaled.scaling, interleaved, start, scaled.variant)


def _rotated_size(head_dim: int, share: float) -> int:
    """Return the number of rotated elements of a head, which is even."""
    if head_dim > MAX_HEAD_DIM:
        raise ModelLoadError(
            f"config.json: an attention head must have at most {MAX_HEAD_DIM} elements, not {head_dim}; "
            "download the file again."
        )
    if not 0 < share <= 1:
        raise ModelLoadError(
            f"config.json: partial_rotary_factor must be more than 0 and at most 1, not {share}; download "
            "the file again."
        )
    size = int(head_dim * share)
    return size - size % 2


def longest_context(config: ConfigReader) -> int:
    """Return the context length: `max_position_embeddings`, or what dynamic scaling extends it to on
    request."""
    longest = config.integer("max_position_embeddings")
    parameters = (
        rope_parameters(config) if config.has("rope_scaling") or config.has("rope_parameters") else {}
    )
    if parameters.get("rope_type") != "dynamic" or config.max_model_len is None:
        return longest
    extended = int(longest * ConfigReader(parameters).number("factor"))
    return max(longest, min(config.max_model_len, extended))


def with_default_rope(config: ConfigReader, parameters: Mapping[str, Any]) -> ConfigReader:
    """Return a reader with these `rope_parameters`, unless config.json has them or `rope_scaling`."""
    return config if config.has("rope_scaling") else config.with_defaults(rope_parameters=dict(parameters))


def rope_parameters(config: ConfigReader, layer_type: str | None = None) -> dict[str, Any]:
    """Return `rope_parameters` (transformers 5), also if config.json has `rope_theta` and `rope_scaling`
    (older)."""
    content = config.content
    found = content.get("rope_parameters") or content.get("rope_scaling") or {}
    if not isinstance(found, Mapping):
        raise ModelLoadError(f"config.json: rope_scaling must be an object, not {found!r}.")
    parameters = dict(_of_layer_type(found, layer_type))
    parameters.setdefault("rope_type", parameters.get("type", "default"))
    if parameters["rope_type"] == "su":
        # The name of longrope in the first checkpoints of Phi-3.
        parameters["rope_type"] = "longrope"
    for key in ("rope_theta", "partial_rotary_factor"):
        if content.get(key) is not None:
            parameters.setdefault(key, content[key])
    return parameters


def _of_layer_type(found: Mapping[str, Any], layer_type: str | None) -> Mapping[str, Any]:
    """Return the values for one kind of layers. Older checkpoints have one set, for layers without a
    window."""
    if layer_type is None:
        return found
    if any(isinstance(each, Mapping) for each in found.values()):
        return found.get(layer_type) or {}
    return found if layer_type == "full_attention" else {}


def _trained_len(config: ConfigReader, parameters: Mapping[str, Any]) -> int:
    key = "original_max_position_embeddings"
    for reader in (config, ConfigReader(parameters)):
        if reader.has(key):
            return reader.integer(key)
    return config.integer("max_position_embeddings")


def _powers(rope: _Rope, theta: float | None = None) -> torch.Tensor:
    """Return theta ** (2i / R), float32 [R / 2]."""
    exponents = torch.arange(0, rope.size, 2, dtype=torch.int64).float() / rope.size
    powers: torch.Tensor = (rope.theta if theta is None else theta) ** exponents
    return powers


def _default(rope: _Rope) -> _Scaled:
    return _Scaled(1.0 / _powers(rope))


def _linear(rope: _Rope) -> _Scaled:
    return _Scaled(1.0 / _powers(rope) / rope.parameters.number("factor"))


def _llama3(rope: _Rope) -> _Scaled:
    """Scale as Llama 3.1: divide low frequencies by `factor`, keep high ones, interpolate those in
    between."""
    inv_freq = 1.0 / _powers(rope)
    factor = rope.parameters.number("factor")
    low, high = rope.parameters.number("low_freq_factor"), rope.parameters.number("high_freq_factor")
    turns = rope.trained_len * inv_freq / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return _Scaled((1 - kept) * inv_freq / factor + kept * inv_freq)


def _dynamic(rope: _Rope) -> _Scaled:
    """Raise theta for the longest text (NTK-aware scaling), if that is longer than the trained context."""
    length, trained = rope.max_model_len, rope.max_position_embeddings
    if length <= trained:
        return _Scaled(1.0 / _powers(rope), variant="dynamic-none")
    factor = rope.parameters.number("factor")
    theta = rope.theta * (factor * length / trained - (factor - 1)) ** (rope.size / (rope.size - 2))
    return _Scaled(1.0 / _powers(rope, theta), variant=f"dynamic-{length}")


def _yarn(rope: _Rope) -> _Scaled:
    """Interpolate by parts (YaRN, Peng et al. 2023, section 3.2) and scale the angles' cosine and sine."""
    parameters = rope.parameters
    factor = parameters.number("factor", rope.max_position_embeddings / rope.trained_len)
    low = _yarn_dim(rope, parameters.number("beta_fast", 32))
    high = _yarn_dim(rope, parameters.number("beta_slow", 1))
    if parameters.flag("truncate", default=True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.size - 1)
    ramp = (torch.arange(rope.size // 2).float() - low) / (high - low or 0.001)
    kept = 1 - ramp.clamp(0, 1)
    powers = _powers(rope)
    inv_freq = 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept
    return _Scaled(inv_freq, _yarn_scaling(parameters, factor))


def _yarn_dim(rope: _Rope, num_turns: float) -> float:
    """Return the element whose angle makes this number of turns in the trained context."""
    turns = math.log(rope.trained_len / (num_turns * 2 * math.pi))
    return rope.size * turns / (2 * math.log(rope.theta))


def _yarn_scaling(parameters: ConfigReader, factor: float) -> float:
    if parameters.has("attention_factor"):
        return parameters.number("attention_factor")
    scale, scale_all = (parameters.content.get(key) for key in ("mscale", "mscale_all_dim"))
    if scale and scale_all:
        return temperature(factor, scale) / temperature(factor, scale_all)
    return temperature(factor, 1.0)


def temperature(factor: float, scale: float) -> float:
    """Return YaRN's factor of the scores' square root for a context that is `factor` times as long."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(rope: _Rope) -> _Scaled:
    """Divide each frequency by its own factor (LongRoPE, Ding et al. 2024): the long or the short list."""
    parameters = rope.parameters
    name = "long" if rope.max_model_len > rope.trained_len else "short"
    factors = torch.tensor(parameters.items(f"{name}_factor", rope.size // 2), dtype=torch.float32)
    factor = parameters.number("factor", rope.max_position_embeddings / rope.trained_len)
    scaling = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(rope.trained_len))
    scaling = parameters.number("attention_factor", scaling)
    return _Scaled(1.0 / (factors * _powers(rope)), scaling, variant=f"longrope-{name}")


_KINDS: Mapping[str, Callable[[_Rope], _Scaled]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
}
