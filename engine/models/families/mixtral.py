"""Mixtral: Mistral with a mixture of experts in each layer."""

from __future__ import annotations

from pagefleet.engine.model_spec import ModelSpec, MoeSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, gated_mlp, model, pre_norm_layers, rms_norm, with_windows
from pagefleet.engine.models.rope import read_rope
from pagefleet.engine.models.tensor_names import TensorNames

THETA = 1e6


def read(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(num_key_value_heads=8)
    norm = rms_norm(config, default=1e-5)
    attentions = with_windows(config, attention(config, read_rope(config, theta=THETA)))
    experts = MoeSpec(
        config.integer("num_local_experts", 8), config.integer("num_experts_per_tok", 2), gated_mlp(config)
    )
    return model(config, pre_norm_layers(config, attentions, experts, norm), norm)


FAMILY = Family(
    model_types=("mixtral",),
    architectures=("MixtralForCausalLM",),
    read=read,
    names=TensorNames(
        router="block_sparse_moe.gate",
        expert_gate_up=("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3"),
        expert_down="block_sparse_moe.experts.{}.w2",
    ),
)
