"""gpt-oss: attention sinks, alternating windows, YaRN, and experts with biases and a clamped activation."""

from __future__ import annotations

import torch

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.linear_weights import LinearWeights
from pagefleet.engine.model_spec import LayerSpec, MlpSpec, ModelSpec, MoeSpec, RouterSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, model, pre_norm_layers, rms_norm
from pagefleet.engine.models.rope import read_rope, with_default_rope
from pagefleet.engine.models.tensor_names import TensorNames

HEAD_DIM, THETA, WINDOW = 64, 150_000.0, 128
ALPHA, LIMIT = 1.702, 7.0
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def read(config: ConfigReader) -> ModelSpec:
    if (config.number("swiglu_alpha", ALPHA), config.number("swiglu_limit", LIMIT)) != (ALPHA, LIMIT):
        raise ModelLoadError(
            f"config.json: swiglu_alpha and swiglu_limit must be {ALPHA} and {LIMIT}; use a different model."
        )
    config = with_default_rope(config.with_defaults(num_key_value_heads=8), YARN)
    norm, head_dim = rms_norm(config, default=1e-5), config.integer("head_dim", HEAD_DIM)
    bias, num_layers = config.flag("attention_bias", default=True), config.integer("num_hidden_layers")
    rope = read_rope(config, head_dim=head_dim, theta=THETA)
    kinds = (
        config.items("layer_types", num_layers)
        if config.has("layer_types")
        else ["sliding_attention", "full_attention"] * (num_layers // 2 + 1)
    )
    window = config.integer("sliding_window", WINDOW)
    attentions = [
        attention(
            config,
            rope,
            head_dim=head_dim,
            window=window if kind == "sliding_attention" else None,
            sinks=True,
            qkv_bias=bias,
            output_bias=bias,
        )
        for kind in kinds[:num_layers]
    ]
    experts = MoeSpec(
        config.integer("num_local_experts", 128),
        config.integer("num_experts_per_tok", 4),
        MlpSpec(config.integer("intermediate_size"), "clamped_swiglu", bias=True),
        RouterSpec(scores="softmax_of_top", bias=True),
    )
    return model(config, pre_norm_layers(config, attentions, experts, norm), norm)


def gate_before_up(weights: LinearWeights, _layer: LayerSpec) -> LinearWeights:
    """Return weights whose rows of gate and up-projection alternate with all rows of the gate first."""

    def reorder(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor[::2], tensor[1::2]])

    return LinearWeights.of(reorder(weights.dense()), None if weights.bias is None else reorder(weights.bias))


FAMILY = Family(
    model_types=("gpt_oss",),
    architectures=("GptOssForCausalLM",),
    read=read,
    names=TensorNames(
        router="mlp.router",
        expert_gate_up=("mlp.experts.gate_up_proj",),
        expert_down="mlp.experts.down_proj",
        stacked_experts=True,
        transposed_experts=True,
        convert={"expert_gate_up": gate_before_up},
    ),
)
