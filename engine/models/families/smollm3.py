"""SmolLM3: Llama without a rotation in every fourth layer."""

from __future__ import annotations

from dataclasses import replace

from pagefleet.engine.model_spec import AttentionSpec, ModelSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, gated_mlp, model, pre_norm_layers, rms_norm, windows
from pagefleet.engine.models.rope import read_rope


def read(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(
        num_key_value_heads=4, rope_theta=2_000_000.0, tie_word_embeddings=True, use_sliding_window=False
    )
    mlp, norm = gated_mlp(config, bias=config.flag("mlp_bias")), rms_norm(config)
    return model(config, pre_norm_layers(config, attentions(config), mlp, norm), norm)


def attentions(config: ConfigReader) -> list[AttentionSpec]:
    """Return the attention of each layer. Without `layer_types`, the layers without a rotation have the
    window."""
    num_layers, bias = config.integer("num_hidden_layers"), config.flag("attention_bias")
    usual = attention(config, read_rope(config), qkv_bias=bias, output_bias=bias)
    interval = config.integer("no_rope_layer_interval", 4)
    rotates = [number % interval != 0 for number in range(1, num_layers + 1)]
    if config.has("no_rope_layers"):
        # 1 is a layer with a rotation.
        rotates = [bool(each) for each in config.items("no_rope_layers", num_layers)]
    found = windows(config)
    if not config.has("layer_types"):
        found = [None if rotates[index] else window for index, window in enumerate(found)]
    return [
        replace(usual, rope=usual.rope if rotated else None, window=window)
        for rotated, window in zip(rotates, found, strict=True)
    ]


FAMILY = Family(model_types=("smollm3",), architectures=("SmolLM3ForCausalLM",), read=read)
