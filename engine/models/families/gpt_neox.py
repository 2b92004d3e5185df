"""GPT-NeoX and Pythia: parallel attention and MLP, rotation of a part of each head, layer norms."""

from __future__ import annotations

from dataclasses import replace

from pagefleet.engine.model_spec import MlpSpec, ModelSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, layer_norm, model, pre_norm_layers
from pagefleet.engine.models.rope import DEFAULT_THETA, read_rope
from pagefleet.engine.models.tensor_names import TensorNames, split_heads

PARTIAL = 0.25


def read(config: ConfigReader) -> ModelSpec:
    partial = config.number("rotary_pct", PARTIAL)
    rope = read_rope(config, partial=partial, theta=config.number("rotary_emb_base", DEFAULT_THETA))
    norm, bias = layer_norm(config), config.flag("attention_bias", default=True)
    usual = attention(config, rope, qkv_bias=bias, output_bias=bias)
    activation = config.activation(default="gelu")
    mlp = MlpSpec(config.integer("intermediate_size"), activation, gated=False, bias=True)
    layers = pre_norm_layers(config, [usual] * config.integer("num_hidden_layers"), mlp, norm)
    parallel = config.flag("use_parallel_residual", default=True)
    return model(config, [replace(layer, parallel=parallel) for layer in layers], norm)


FAMILY = Family(
    model_types=("gpt_neox",),
    architectures=("GPTNeoXForCausalLM",),
    read=read,
    names=TensorNames(
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        layer="gpt_neox.layers.{}",
        ignored=("gpt_neox.layers.*.attention.bias", "gpt_neox.layers.*.attention.masked_bias"),
        qkv=("attention.query_key_value",),
        attention_output="attention.dense",
        gate_up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        convert={"qkv": split_heads},
    ),
)
