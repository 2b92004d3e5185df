"""Granite 3: Llama with factors of embeddings, scores, residuals and logits."""

from __future__ import annotations

from dataclasses import replace

from pagefleet.engine.model_spec import MlpSpec, ModelSpec, MoeSpec, RopeSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, gated_mlp, model, pre_norm_layers, rms_norm
from pagefleet.engine.models.rope import read_rope


def read(config: ConfigReader) -> ModelSpec:
    return granite_model(config, read_rope(config), gated_mlp(config, bias=config.flag("mlp_bias")))


def granite_model(config: ConfigReader, rope: RopeSpec | None, mlp: MlpSpec | MoeSpec) -> ModelSpec:
    bias, norm = config.flag("attention_bias"), rms_norm(config)
    scale = config.number("attention_multiplier", 1.0)
    usual = attention(config, rope, scale=scale, qkv_bias=bias, output_bias=bias)
    layers = pre_norm_layers(config, [usual] * config.integer("num_hidden_layers"), mlp, norm)
    residual_scale = config.number("residual_multiplier", 1.0)
    return model(
        config,
        [replace(layer, residual_scale=residual_scale) for layer in layers],
        norm,
        embed_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=1 / config.number("logits_scaling", 1.0),
    )


FAMILY = Family(model_types=("granite",), architectures=("GraniteForCausalLM",), read=read)
