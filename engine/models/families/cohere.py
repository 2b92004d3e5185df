"""Cohere Command-R: attention and MLP in parallel, layer norms without a bias, rotation of neighbours."""

from __future__ import annotations

from pagefleet.engine.model_spec import AttentionSpec, LayerSpec, ModelSpec, QkNormSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, gated_mlp, layer_norm, model
from pagefleet.engine.models.rope import read_rope


def read(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(rope_theta=500_000.0)
    bias = config.flag("attention_bias")
    qk_norm = (
        QkNormSpec(layer_norm(config, bias=False), per_head=True) if config.flag("use_qk_norm") else None
    )
    rope = read_rope(config, interleaved=True)
    usual = attention(config, rope, qk_norm=qk_norm, qkv_bias=bias, output_bias=bias)
    return parallel_model(config, [usual] * config.integer("num_hidden_layers"))


def parallel_model(config: ConfigReader, attentions: list[AttentionSpec]) -> ModelSpec:
    config = config.with_defaults(logit_scale=0.0625, tie_word_embeddings=True)
    mlp, norm = gated_mlp(config), layer_norm(config, bias=False)
    layers = [LayerSpec(each, mlp, pre_attention=norm, parallel=True) for each in attentions]
    return model(config, layers, norm, logit_scale=config.number("logit_scale"))


FAMILY = Family(model_types=("cohere",), architectures=("CohereForCausalLM",), read=read)
