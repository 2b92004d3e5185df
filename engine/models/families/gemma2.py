"""Gemma 2: Gemma with norms before and after attention and MLP, a window in every other layer, and capped
scores and logits."""

from __future__ import annotations

from pagefleet.engine.model_spec import AttentionSpec, LayerSpec, ModelSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.families.gemma import GELU, embed_scale, gemma_attention, gemma_config
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import alternating, gated_mlp, model, rms_norm
from pagefleet.engine.models.rope import read_rope
from pagefleet.engine.models.tensor_names import TensorNames


def read(config: ConfigReader) -> ModelSpec:
    config = gemma_config(config).with_defaults(
        num_key_value_heads=4,
        query_pre_attn_scalar=256,
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    )
    soft_cap = optional_number(config, "attn_logit_softcapping")
    usual = gemma_attention(config, read_rope(config), scale=scale(config), soft_cap=soft_cap)
    return sandwich_model(config, alternating(config, period=2, sliding=usual, full=usual))


def scale(config: ConfigReader) -> float:
    return float(config.number("query_pre_attn_scalar") ** -0.5)


def sandwich_model(config: ConfigReader, attentions: list[AttentionSpec]) -> ModelSpec:
    norm = rms_norm(config, unit_offset=True)
    mlp = gated_mlp(config, activation=config.activation("hidden_activation", GELU))
    layers = [
        LayerSpec(each, mlp, pre_attention=norm, post_attention=norm, pre_mlp=norm, post_mlp=norm)
        for each in attentions
    ]
    cap = optional_number(config, "final_logit_softcapping")
    return model(config, layers, norm, embed_scale=embed_scale(config), logit_soft_cap=cap)


def optional_number(config: ConfigReader, name: str) -> float | None:
    return config.number(name) if config.has(name) else None


NAMES = TensorNames(
    post_attention="post_attention_layernorm",
    pre_mlp="pre_feedforward_layernorm",
    post_mlp="post_feedforward_layernorm",
)
FAMILY = Family(model_types=("gemma2",), architectures=("Gemma2ForCausalLM",), read=read, names=NAMES)
