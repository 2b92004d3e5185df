"""Mistral 7B and its successors, and Ministral: Llama with sliding windows."""

from __future__ import annotations

from pagefleet.engine.model_spec import ModelSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, gated_mlp, model, pre_norm_layers, rms_norm, with_windows
from pagefleet.engine.models.rope import read_rope

WINDOW = 4096


def read(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(num_key_value_heads=8)
    norm = rms_norm(config)
    attentions = with_windows(config, attention(config, read_rope(config)), WINDOW)
    return model(config, pre_norm_layers(config, attentions, gated_mlp(config), norm), norm)


FAMILY = Family(
    model_types=("mistral", "ministral"),
    architectures=("MistralForCausalLM", "MinistralForCausalLM"),
    read=read,
)
