"""Gemma 1: Llama with norms stored as a difference from 1, scaled embeddings and a GELU."""

from __future__ import annotations

from typing import Any

from pagefleet.engine.model_spec import AttentionSpec, ModelSpec, RopeSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, gated_mlp, model, pre_norm_layers, rms_norm
from pagefleet.engine.models.rope import read_rope

GELU = "gelu_pytorch_tanh"


def read(config: ConfigReader) -> ModelSpec:
    config = gemma_config(config)
    activation = config.activation(default=GELU)
    # The first checkpoints name the exact GELU, but are trained with the approximation.
    mlp = gated_mlp(config, activation=GELU if activation == "gelu" else activation)
    norm = rms_norm(config, unit_offset=True)
    attentions = [gemma_attention(config, read_rope(config))] * config.integer("num_hidden_layers")
    layers = pre_norm_layers(config, attentions, mlp, norm)
    return model(config, layers, norm, embed_scale=embed_scale(config))


def gemma_config(config: ConfigReader) -> ConfigReader:
    """Return the reader with the defaults that the versions of Gemma share."""
    config.refuse("use_bidirectional_attention", "the model is an encoder")
    return config.with_defaults(head_dim=256, tie_word_embeddings=True)


def gemma_attention(config: ConfigReader, rope: RopeSpec, **changes: Any) -> AttentionSpec:
    bias = config.flag("attention_bias")
    return attention(config, rope, qkv_bias=bias, output_bias=bias, **changes)


def embed_scale(config: ConfigReader) -> float:
    return float(config.integer("hidden_size") ** 0.5)


FAMILY = Family(model_types=("gemma",), architectures=("GemmaForCausalLM",), read=read)
