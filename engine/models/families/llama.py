"""Llama 1 to 3, and the models with its architecture, such as SmolLM2 and Falcon 3."""

from __future__ import annotations

from pagefleet.engine.model_spec import ModelSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, gated_mlp, model, pre_norm_layers, rms_norm
from pagefleet.engine.models.rope import read_rope


def read(config: ConfigReader) -> ModelSpec:
    bias = config.flag("attention_bias")
    usual = attention(config, read_rope(config), qkv_bias=bias, output_bias=bias)
    mlp = gated_mlp(config, bias=config.flag("mlp_bias"))
    norm = rms_norm(config)
    layers = pre_norm_layers(config, [usual] * config.integer("num_hidden_layers"), mlp, norm)
    return model(config, layers, norm)


FAMILY = Family(model_types=("llama",), architectures=("LlamaForCausalLM",), read=read)
