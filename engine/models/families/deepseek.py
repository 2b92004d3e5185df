"""DeepSeek-V2 and V3: latent attention, and experts that are chosen within groups. Keys and values are
decompressed before they are cached."""

from __future__ import annotations

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.model_spec import (
    AttentionSpec,
    LatentSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    RouterSpec,
)
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import gated_mlp, model, rms_norm
from pagefleet.engine.models.rope import read_rope, rope_parameters, temperature
from pagefleet.engine.models.tensor_names import TensorNames

LATENT_EPS = 1e-6


def read(config: ConfigReader) -> ModelSpec:
    is_v3 = config.content.get("model_type") != "deepseek_v2"
    config = config.with_defaults(q_lora_rank=1536, n_shared_experts=1 if is_v3 else 2)
    norm, attention = rms_norm(config), _attention(config)
    num_dense = int(config.number("first_k_dense_replace", 3 if is_v3 else 0))
    experts = _experts(config, _router_v3(config) if is_v3 else _router_v2(config))
    dense = gated_mlp(config)
    layers = [
        LayerSpec(attention, dense if index < num_dense else experts, pre_attention=norm, pre_mlp=norm)
        for index in range(config.integer("num_hidden_layers"))
    ]
    return model(config, layers, norm)


def _attention(config: ConfigReader) -> AttentionSpec:
    num_heads = config.integer("num_attention_heads")
    plain, rotated = config.integer("qk_nope_head_dim", 128), config.integer("qk_rope_head_dim", 64)
    rope = read_rope(
        config,
        head_dim=rotated,
        interleaved=config.flag("rope_interleave", default=True),
        start=plain,
    )
    bias, value_dim = config.flag("attention_bias"), config.integer("v_head_dim", 128)
    if value_dim > plain + rotated:
        raise ModelLoadError(
            f"config.json: v_head_dim ({value_dim}) must be at most the sum of qk_nope_head_dim and "
            f"qk_rope_head_dim ({plain + rotated}); use a different model."
        )
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=plain + rotated,
        value_dim=value_dim,
        scale=(plain + rotated) ** -0.5 * _score_scale(config),
        rope=rope,
        qkv_bias=bias,
        output_bias=bias,
        latent=LatentSpec(
            query_rank=config.integer("q_lora_rank") if config.has("q_lora_rank") else None,
            kv_rank=config.integer("kv_lora_rank", 512),
            rope_dim=rotated,
            norm=NormSpec(LATENT_EPS),
        ),
    )


def _score_scale(config: ConfigReader) -> float:
    """Return the factor of the scores that YaRN's `mscale_all_dim` asks for."""
    parameters = ConfigReader(rope_parameters(config))
    if parameters.content["rope_type"] == "default" or not parameters.content.get("mscale_all_dim"):
        return 1.0
    return temperature(parameters.number("factor"), parameters.number("mscale_all_dim")) ** 2


def _experts(config: ConfigReader, router: RouterSpec) -> MoeSpec:
    width, activation = config.integer("moe_intermediate_size"), config.activation()
    num_shared = int(config.number("n_shared_experts", 0))
    return MoeSpec(
        config.integer("n_routed_experts"),
        config.integer("num_experts_per_tok"),
        MlpSpec(width, activation),
        router,
        shared=MlpSpec(width * num_shared, activation) if num_shared else None,
    )


def _router_v2(config: ConfigReader) -> RouterSpec:
    method = config.content.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise ModelLoadError(
            f"config.json: topk_method {method!r} is not supported, only greedy and group_limited_greedy; "
            "use a different model."
        )
    grouped = method == "group_limited_greedy"
    return RouterSpec(
        normalise=False,
        scale=config.number("routed_scaling_factor", 1.0),
        num_groups=config.integer("n_group") if grouped else 1,
        top_groups=config.integer("topk_group") if grouped else 1,
    )


def _router_v3(config: ConfigReader) -> RouterSpec:
    return RouterSpec(
        scores="sigmoid",
        normalise=config.flag("norm_topk_prob", default=True),
        scale=config.number("routed_scaling_factor", 2.5),
        correction=True,
        num_groups=config.integer("n_group", 8),
        top_groups=config.integer("topk_group", 4),
        group_score="top2",
        masked_score=float("-inf"),
    )


FAMILY = Family(
    model_types=("deepseek_v2", "deepseek_v3"),
    architectures=("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
    read=read,
    names=TensorNames(ignores_more_layers=True),
)
