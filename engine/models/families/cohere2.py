"""Cohere Command-R7B and Command A: Command-R with a sliding window in three of four layers; only these
rotate."""

from __future__ import annotations

from dataclasses import replace

from pagefleet.engine.model_spec import ModelSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.families.cohere import parallel_model
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import alternating, attention
from pagefleet.engine.models.rope import read_rope


def read(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(sliding_window=4096)
    bias = config.flag("attention_bias")
    sliding = attention(config, read_rope(config, interleaved=True), qkv_bias=bias, output_bias=bias)
    attentions = alternating(config, period=4, sliding=sliding, full=replace(sliding, rope=None))
    return parallel_model(config, attentions)


FAMILY = Family(model_types=("cohere2",), architectures=("Cohere2ForCausalLM",), read=read)
