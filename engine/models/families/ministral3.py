"""Ministral 3: Mistral with YaRN, whose queries grow with their position."""

from __future__ import annotations

from pagefleet.engine.model_spec import ModelSpec, QueryGrowthSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, gated_mlp, model, pre_norm_layers, rms_norm, with_windows
from pagefleet.engine.models.rope import read_rope, rope_parameters, with_default_rope

HEAD_DIM = 128
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16384,
    "llama_4_scaling_beta": 0.1,
}


def read(config: ConfigReader) -> ModelSpec:
    config = with_default_rope(config.with_defaults(num_key_value_heads=8), YARN)
    norm, head_dim = rms_norm(config, default=1e-5), config.integer("head_dim", HEAD_DIM)
    parameters = ConfigReader(rope_parameters(config))
    growth = None
    if parameters.has("llama_4_scaling_beta"):
        length = parameters.integer("original_max_position_embeddings")
        growth = QueryGrowthSpec(parameters.number("llama_4_scaling_beta"), length)
    rope = read_rope(config, head_dim=head_dim)
    usual = attention(config, rope, head_dim=head_dim, query_growth=growth)
    layers = pre_norm_layers(config, with_windows(config, usual), gated_mlp(config), norm)
    return model(config, layers, norm)


FAMILY = Family(model_types=("ministral3",), architectures=("Ministral3ForCausalLM",), read=read)
