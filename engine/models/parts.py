"""The parts that most families share: the usual attention, MLP, layers and model, read from config.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.model_spec import (
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    RopeSpec,
)
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.rope import longest_context

__all__ = [
    "FULL",
    "SLIDING",
    "alternating",
    "attention",
    "gated_mlp",
    "layer_norm",
    "model",
    "pre_norm_layers",
    "rms_norm",
    "windows",
    "with_windows",
]

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of `layer_types`."""


def rms_norm(config: ConfigReader, *, default: float = 1e-6, unit_offset: bool = False) -> NormSpec:
    """Return an RMS norm.

    Args:
        default: the epsilon, unless config.json has it.
    """
    return NormSpec(config.number("rms_norm_eps", default), unit_offset=unit_offset)


def attention(
    config: ConfigReader, rope: RopeSpec | None, *, head_dim: int | None = None, **changes: Any
) -> AttentionSpec:
    """Return grouped-query attention with the usual scale; `changes` replace its fields.

    Args:
        head_dim: elements of a head. None: from config.json.
    """
    num_heads, head_dim = config.integer("num_attention_heads"), head_dim or config.head_dim
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ModelLoadError(
            f"config.json: num_attention_heads ({num_heads}) must be a multiple of num_key_value_heads "
            f"({num_kv_heads}); download the file again."
        )
    usual = AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope,
    )
    return replace(usual, **changes)


def gated_mlp(config: ConfigReader, *, activation: str | None = None, bias: bool = False) -> MlpSpec:
    width = config.integer("intermediate_size")
    return MlpSpec(width, config.activation() if activation is None else activation, bias=bias)


def windows(config: ConfigReader, default: int | None = None) -> list[int | None]:
    """Return the sliding window of each layer, in tokens, or None for a layer that attends to all tokens.

    `layer_types` names the layers with a window; without it, all layers have it.

    Args:
        default: the window, unless config.json has it, perhaps as null.
    """
    num_layers = config.integer("num_hidden_layers")
    window = config.integer("sliding_window") if config.has("sliding_window") else None
    if "sliding_window" not in config.content:
        window = default
    if window is None or not config.flag("use_sliding_window", default=True):
        return [None] * num_layers
    if not config.has("layer_types"):
        return [window] * num_layers
    types = config.items("layer_types", num_layers)
    return [window if kind == "sliding_attention" else None for kind in types]


def alternating(
    config: ConfigReader, *, period: int, sliding: AttentionSpec, full: AttentionSpec
) -> list[AttentionSpec]:
    """Return the attention of each layer: `sliding` with the sliding window, or `full`.

    Without `layer_types`, every layer whose number is a multiple of the period is full. Older checkpoints
    give the period as `sliding_window_pattern`.
    """
    num_layers = config.integer("num_hidden_layers")
    period = config.integer("sliding_window_pattern", period)
    types = [FULL if number % period == 0 else SLIDING for number in range(1, num_layers + 1)]
    if config.has("layer_types"):
        types = config.items("layer_types", num_layers)
    unknown = [each for each in types if each not in (FULL, SLIDING)]
    if unknown:
        raise ModelLoadError(
            f"config.json: the layer type {unknown[0]!r} is not supported, only {FULL} and {SLIDING}; use a "
            "different model."
        )
    if SLIDING in types:
        sliding = replace(sliding, window=config.integer("sliding_window"))
    return [sliding if each == SLIDING else full for each in types]


def with_windows(
    config: ConfigReader, usual: AttentionSpec, default: int | None = None
) -> list[AttentionSpec]:
    """Return the attention of each layer, which differs in its window only; see `windows`."""
    return [replace(usual, window=window) for window in windows(config, default)]


def layer_norm(config: ConfigReader, name: str = "layer_norm_eps", *, bias: bool = True) -> NormSpec:
    """Return a layer norm whose epsilon has this name in config.json."""
    return NormSpec(config.number(name, 1e-5), centred=True, bias=bias)


def pre_norm_layers(
    config: ConfigReader, attentions: Sequence[AttentionSpec], mlp: MlpSpec | MoeSpec, norm: NormSpec
) -> tuple[LayerSpec, ...]:
    """Return layers with a norm before the attention and one before the MLP."""
    num_layers = config.integer("num_hidden_layers")
    assert len(attentions) == num_layers, (len(attentions), num_layers)
    return tuple(LayerSpec(each, mlp, pre_attention=norm, pre_mlp=norm) for each in attentions)


def model(
    config: ConfigReader, layers: Sequence[LayerSpec], final_norm: NormSpec | None, **changes: Any
) -> ModelSpec:
    """Return the model with the usual embedding and head; `changes` replace its fields."""
    usual = ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        layers=tuple(layers),
        final_norm=final_norm,
        tied=config.flag("tie_word_embeddings"),
        max_model_len=longest_context(config),
        dtype=config.dtype,
    )
    return replace(usual, **changes)
