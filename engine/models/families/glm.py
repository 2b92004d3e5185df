"""GLM-4: half of each head is rotated in neighbouring pairs; the later models have norms after both parts of
a layer too."""

from __future__ import annotations

from dataclasses import replace

from pagefleet.engine.model_spec import ModelSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, gated_mlp, model, pre_norm_layers, rms_norm
from pagefleet.engine.models.rope import read_rope
from pagefleet.engine.models.tensor_names import TensorNames

HEAD_DIM, EPS, PARTIAL = 128, 1.5625e-7, 0.5


def read(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(num_key_value_heads=2)
    norm, head_dim = rms_norm(config, default=EPS), config.integer("head_dim", HEAD_DIM)
    rope = read_rope(config, head_dim=head_dim, partial=PARTIAL, interleaved=True)
    bias = config.flag("attention_bias", default=True)
    usual = attention(config, rope, head_dim=head_dim, qkv_bias=bias)
    num_layers = config.integer("num_hidden_layers")
    layers = pre_norm_layers(config, [usual] * num_layers, gated_mlp(config), norm)
    if config.content.get("model_type") == "glm4":
        layers = tuple(replace(layer, post_attention=norm, post_mlp=norm) for layer in layers)
    return model(config, layers, norm)


FAMILY = Family(
    model_types=("glm", "glm4"),
    architectures=("GlmForCausalLM", "Glm4ForCausalLM"),
    read=read,
    names=TensorNames(
        gate_up=("mlp.gate_up_proj",),
        post_attention="post_self_attn_layernorm",
        post_mlp="post_mlp_layernorm",
    ),
)
