"""Granite 4, and the mixtures of experts of Granite 3: Granite with experts, a shared MLP, or both.

Granite 4 has models with state-space layers, which are refused.
"""

from __future__ import annotations

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.model_spec import MlpSpec, ModelSpec, MoeSpec, RouterSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.families.granite import granite_model
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import FULL, gated_mlp
from pagefleet.engine.models.rope import read_rope
from pagefleet.engine.models.tensor_names import TensorNames


def read(config: ConfigReader) -> ModelSpec:
    model_type = config.content.get("model_type")
    is_hybrid = model_type == "granitemoehybrid"
    if is_hybrid:
        _refuse_state_space(config)
    rotates = not is_hybrid or config.content.get("position_embedding_type") == "rope"
    num_shared = int(config.number("shared_intermediate_size", 1024 if is_hybrid else 0))
    # GraniteMoe ignores the width of a shared MLP in config.json.
    shared = MlpSpec(num_shared, config.activation()) if num_shared and model_type != "granitemoe" else None
    return granite_model(config, read_rope(config) if rotates else None, _mlp(config, shared))


def _mlp(config: ConfigReader, shared: MlpSpec | None) -> MlpSpec | MoeSpec:
    num_experts = int(config.number("num_local_experts", 8))
    if num_experts == 0 and shared is not None:
        return shared
    return MoeSpec(
        config.integer("num_local_experts", 8),
        config.integer("num_experts_per_tok", 2),
        gated_mlp(config),
        RouterSpec(scores="softmax_of_top"),
        shared,
    )


def _refuse_state_space(config: ConfigReader) -> None:
    num_layers = config.integer("num_hidden_layers")
    types = config.items("layer_types", num_layers) if config.has("layer_types") else ["mamba"]
    others = [each for each in types if each not in (FULL, "attention")]
    if others:
        raise ModelLoadError(
            f"config.json: GraniteMoeHybridForCausalLM has state-space layers ({others[0]}), whose state "
            "cannot be kept in a paged KV cache; use a model that has attention in all layers."
        )


FAMILY = Family(
    model_types=("granitemoe", "granitemoeshared", "granitemoehybrid"),
    architectures=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM", "GraniteMoeHybridForCausalLM"),
    read=read,
    names=TensorNames(
        gate_up=("shared_mlp.input_linear",),
        down="shared_mlp.output_linear",
        router="block_sparse_moe.router.layer",
        stacked_experts=True,
        expert_gate_up=("block_sparse_moe.input_linear.weight",),
        expert_down="block_sparse_moe.output_linear.weight",
        shared_gate_up=("shared_mlp.input_linear",),
        shared_down="shared_mlp.output_linear",
    ),
)
