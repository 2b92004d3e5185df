"""Qwen3: Llama with norms of queries and keys for each head."""

from __future__ import annotations

from pagefleet.engine.model_spec import AttentionSpec, ModelSpec, QkNormSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.families.qwen2 import upper_windows
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, gated_mlp, model, pre_norm_layers, rms_norm
from pagefleet.engine.models.rope import read_rope

HEAD_DIM = 128


def read(config: ConfigReader) -> ModelSpec:
    norm = rms_norm(config)
    attentions = upper_windows(config, usual_attention(config, config.integer("head_dim", HEAD_DIM)))
    return model(config, pre_norm_layers(config, attentions, gated_mlp(config), norm), norm)


def usual_attention(config: ConfigReader, head_dim: int) -> AttentionSpec:
    """Return the attention of a layer without a window."""
    bias = config.flag("attention_bias")
    return attention(
        config,
        read_rope(config, head_dim=head_dim),
        head_dim=head_dim,
        qk_norm=QkNormSpec(rms_norm(config)),
        qkv_bias=bias,
        output_bias=bias,
    )


FAMILY = Family(model_types=("qwen3",), architectures=("Qwen3ForCausalLM",), read=read)
