"""Qwen2 and Qwen2.5: Llama with biases in the projections of queries, keys and values."""

from __future__ import annotations

from dataclasses import replace

from pagefleet.engine.model_spec import AttentionSpec, ModelSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, gated_mlp, model, pre_norm_layers, rms_norm, windows
from pagefleet.engine.models.rope import read_rope


def read(config: ConfigReader) -> ModelSpec:
    norm = rms_norm(config)
    attentions = upper_windows(config, attention(config, read_rope(config), qkv_bias=True))
    return model(config, pre_norm_layers(config, attentions, gated_mlp(config), norm), norm)


def upper_windows(config: ConfigReader, usual: AttentionSpec) -> list[AttentionSpec]:
    """Return the attention of each layer. Without `layer_types`, the layers from `max_window_layers` on have
    the sliding window, and only if `use_sliding_window` is set."""
    if not config.flag("use_sliding_window"):
        return [usual] * config.integer("num_hidden_layers")
    found = windows(config)
    if not config.has("layer_types"):
        num_full = int(config.number("max_window_layers", 28))
        found = [None if index < num_full else window for index, window in enumerate(found)]
    return [replace(usual, window=window) for window in found]


FAMILY = Family(model_types=("qwen2",), architectures=("Qwen2ForCausalLM",), read=read)
