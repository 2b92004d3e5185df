"""Qwen3 with a mixture of experts."""

from __future__ import annotations

from pagefleet.engine.model_spec import LayerSpec, MlpSpec, ModelSpec, MoeSpec, RouterSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.families.qwen2 import upper_windows
from pagefleet.engine.models.families.qwen3 import usual_attention
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import gated_mlp, model, rms_norm


def read(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(num_key_value_heads=4)
    norm = rms_norm(config)
    attentions = upper_windows(config, usual_attention(config, config.head_dim))
    mlps = layer_mlps(config, len(attentions))
    pairs = zip(attentions, mlps, strict=True)
    layers = [LayerSpec(each, mlp, pre_attention=norm, pre_mlp=norm) for each, mlp in pairs]
    return model(config, layers, norm)


def layer_mlps(config: ConfigReader, num_layers: int) -> list[MlpSpec | MoeSpec]:
    """Return the MLP of each layer: every `decoder_sparse_step`-th has experts, except `mlp_only_layers`."""
    count = config.integer("num_experts", int(config.number("num_local_experts", 128)))
    width = config.integer("moe_intermediate_size", 768)
    router = RouterSpec(normalise=config.flag("norm_topk_prob"))
    top_k = config.integer("num_experts_per_tok", 8)
    experts = MoeSpec(count, top_k, MlpSpec(width, config.activation()), router)
    plain, step = gated_mlp(config), config.integer("decoder_sparse_step", 1)
    without = config.content.get("mlp_only_layers") or []
    return [
        experts if index not in without and (index + 1) % step == 0 else plain for index in range(num_layers)
    ]


FAMILY = Family(model_types=("qwen3_moe",), architectures=("Qwen3MoeForCausalLM",), read=read)
