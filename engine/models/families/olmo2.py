"""OLMo 2: norms after attention and MLP, and norms of queries and keys across their heads."""

from __future__ import annotations

from pagefleet.engine.model_spec import AttentionSpec, LayerSpec, ModelSpec, QkNormSpec, RopeSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, gated_mlp, model, rms_norm
from pagefleet.engine.models.rope import read_rope
from pagefleet.engine.models.tensor_names import TensorNames


def read(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(rms_norm_eps=1e-5)
    usual = normed_attention(config, read_rope(config))
    return post_norm_model(config, [usual] * config.integer("num_hidden_layers"))


def normed_attention(config: ConfigReader, rope: RopeSpec) -> AttentionSpec:
    bias = config.flag("attention_bias")
    qk_norm = QkNormSpec(rms_norm(config), across_heads=True)
    return attention(config, rope, qk_norm=qk_norm, qkv_bias=bias, output_bias=bias)


def post_norm_model(config: ConfigReader, attentions: list[AttentionSpec]) -> ModelSpec:
    mlp, norm = gated_mlp(config), rms_norm(config)
    layers = [LayerSpec(each, mlp, post_attention=norm, post_mlp=norm) for each in attentions]
    return model(config, layers, norm)


NAMES = TensorNames(post_attention="post_attention_layernorm", post_mlp="post_feedforward_layernorm")
FAMILY = Family(model_types=("olmo2",), architectures=("Olmo2ForCausalLM",), read=read, names=NAMES)
