"""The architectures of GGUF files: their names and tensors in transformers, and the keys of their metadata.

Each entry inverts what llama.cpp's converter does to the checkpoint of the family. A new family is one entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.gguf.header import GGUFHeader
from pagefleet.engine.loading.gguf.family import EXPERT, GGUFFamily

__all__ = ["FAMILIES", "family_of"]

_ATTENTION: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_HEAD_NORMS: Final = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_NORMS: Final = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_POST_NORMS: Final = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_SANDWICH_NORMS: Final = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    **_POST_NORMS,
}
_MLP: Final = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_FUSED_MLP: Final = {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}
_EXPERTS: Final = {
    "ffn_gate_inp": "mlp.gate",
    **{f"ffn_{name}_exps": f"mlp.experts.{EXPERT}.{name}_proj" for name in ("gate", "up", "down")},
}
_GELU: Final[dict[str, Any]] = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
_WINDOW: Final = {"sliding_window": "attention.sliding_window"}

_LLAMA: Final = GGUFFamily(
    "llama",
    "LlamaForCausalLM",
    _NORMS | _ATTENTION | _MLP,
    interleaves=True,
    constants={"hidden_act": "silu"},
)
_MIXTRAL: Final = replace(
    _LLAMA,
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    layer=_NORMS
    | _ATTENTION
    | {
        "ffn_gate_inp": "block_sparse_moe.gate",
        "ffn_gate_exps": f"block_sparse_moe.experts.{EXPERT}.w1",
        "ffn_down_exps": f"block_sparse_moe.experts.{EXPERT}.w2",
        "ffn_up_exps": f"block_sparse_moe.experts.{EXPERT}.w3",
    },
    keys={"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
)
_MINISTRAL3: Final = replace(_LLAMA, model_type="ministral3", architecture="Ministral3ForCausalLM")
_QWEN2: Final = GGUFFamily(
    "qwen2",
    "Qwen2ForCausalLM",
    _NORMS | _ATTENTION | _MLP,
    constants={"hidden_act": "silu", "use_sliding_window": False},
)
_QWEN3: Final = replace(
    _QWEN2,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    layer=_NORMS | _ATTENTION | _HEAD_NORMS | _MLP,
)
_EXPERT_KEYS: Final = {
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
_EXPERT_LAYERS: Final[dict[str, Any]] = {"decoder_sparse_step": 1, "mlp_only_layers": []}
_QWEN3_MOE: Final = replace(
    _QWEN3,
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    layer=_NORMS | _ATTENTION | _HEAD_NORMS | _EXPERTS,
    keys=_EXPERT_KEYS,
    constants=_QWEN3.constants | _EXPERT_LAYERS | {"norm_topk_prob": True},
)
_QWEN2_MOE: Final = replace(
    _QWEN2,
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    layer=_NORMS
    | _ATTENTION
    | _EXPERTS
    | {"ffn_gate_inp_shexp": "mlp.shared_expert_gate"}
    | {f"ffn_{name}_shexp": f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")},
    keys=_EXPERT_KEYS | {"shared_expert_intermediate_size": "expert_shared_feed_forward_length"},
    constants=_QWEN2.constants | _EXPERT_LAYERS | {"norm_topk_prob": False},
)
_PHI3: Final = GGUFFamily(
    "phi3",
    "Phi3ForCausalLM",
    _NORMS | {"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj"} | _FUSED_MLP,
    keys=_WINDOW | {"original_max_position_embeddings": "rope.scaling.original_context_length"},
    constants={"hidden_act": "silu"},
)
_GEMMA: Final = GGUFFamily(
    "gemma", "GemmaForCausalLM", _NORMS | _ATTENTION | _MLP, norm_shift=1.0, constants=_GELU
)
_GEMMA2: Final = replace(
    _GEMMA,
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    layer=_SANDWICH_NORMS | _ATTENTION | _MLP,
    keys=_WINDOW | {name: name for name in ("attn_logit_softcapping", "final_logit_softcapping")},
    full_attention_interval=2,
)
_GEMMA3: Final = replace(
    _GEMMA2,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    layer=_SANDWICH_NORMS | _ATTENTION | _HEAD_NORMS | _MLP,
    keys=_WINDOW | {"final_logit_softcapping": "final_logit_softcapping"},
    full_attention_interval=6,
)
_GRANITE: Final = replace(
    _LLAMA,
    model_type="granite",
    architecture="GraniteForCausalLM",
    keys={
        "attention_multiplier": "attention.scale",
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale",
    },
)
_OLMO2: Final = GGUFFamily(
    "olmo2",
    "Olmo2ForCausalLM",
    _ATTENTION | _HEAD_NORMS | _POST_NORMS | _MLP,
    constants={"hidden_act": "silu"},
)
_OLMO3: Final = replace(
    _OLMO2,
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    keys=_WINDOW,
    full_attention_interval=4,
)
_SMOLLM3: Final = replace(
    _LLAMA,
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    constants={"hidden_act": "silu", "no_rope_layer_interval": 4, "use_sliding_window": False},
)
_GLM4: Final = GGUFFamily(
    "glm4",
    "Glm4ForCausalLM",
    _NORMS
    | {"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"}
    | _ATTENTION
    | _FUSED_MLP,
    constants={"hidden_act": "silu"},
)
_COHERE: Final = GGUFFamily(
    "cohere",
    "CohereForCausalLM",
    {"attn_norm": "input_layernorm"} | _ATTENTION | _MLP,
    optional=_HEAD_NORMS,
    keys={"logit_scale": "logit_scale"},
    constants={"hidden_act": "silu"},
    eps="layer_norm_eps",
)
_COHERE2: Final = replace(
    _COHERE,
    model_type="cohere2",
    architecture="Cohere2ForCausalLM",
    optional={},
    keys=_COHERE.keys | _WINDOW,
    full_attention_interval=4,
)
_STARCODER2: Final = GGUFFamily(
    "starcoder2",
    "Starcoder2ForCausalLM",
    _NORMS | _ATTENTION | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    # The files do not have the window; all published models have this one.
    constants={"hidden_act": "gelu_pytorch_tanh", "use_bias": True, "sliding_window": 4096},
    eps="norm_epsilon",
)
_GPT_OSS: Final = GGUFFamily(
    "gpt_oss",
    "GptOssForCausalLM",
    {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
    | _ATTENTION
    | {"attn_sinks": "self_attn.sinks", "ffn_gate_inp": "mlp.router"}
    | dict.fromkeys(("ffn_gate_exps", "ffn_up_exps"), "mlp.experts.gate_up_proj")
    | {"ffn_down_exps": "mlp.experts.down_proj"},
    keys=_WINDOW | {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
    constants={"hidden_act": "silu", "swiglu_limit": 7.0},
    full_attention_interval=2,
)
_DEEPSEEK2: Final = GGUFFamily(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    _NORMS
    | {
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
        "attn_output": "self_attn.o_proj",
    },
    optional={
        "attn_q": "self_attn.q_proj",
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_q_b": "self_attn.q_b_proj",
        **dict.fromkeys(("attn_kv_b", "attn_k_b", "attn_v_b"), "self_attn.kv_b_proj"),
        "exp_probs_b": "mlp.gate.e_score_correction_bias",
    }
    | _MLP
    | _EXPERTS
    | {f"ffn_{name}_shexp": f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")},
    keys={
        "q_lora_rank": "attention.q_lora_rank",
        "kv_lora_rank": "attention.kv_lora_rank",
        "qk_rope_head_dim": "rope.dimension_count",
        "n_routed_experts": "expert_count",
        "num_experts_per_tok": "expert_used_count",
        "n_shared_experts": "expert_shared_count",
        "moe_intermediate_size": "expert_feed_forward_length",
        "first_k_dense_replace": "leading_dense_block_count",
        "routed_scaling_factor": "expert_weights_scale",
        "n_group": "expert_group_count",
        "topk_group": "expert_group_used_count",
    },
    constants={"hidden_act": "silu"},
)
_DEEPSEEK3: Final = replace(_DEEPSEEK2, model_type="deepseek_v3", architecture="DeepseekV3ForCausalLM")
_SIGMOID: Final = 2
"""DeepSeek-V3's function of the experts' scores, in GGUF's numbers."""
FAMILIES: Final[Mapping[str, GGUFFamily]] = {
    "llama": _LLAMA,
    "mistral3": _MINISTRAL3,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "qwen2moe": _QWEN2_MOE,
    "qwen3moe": _QWEN3_MOE,
    "phi3": _PHI3,
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA3,
    "granite": _GRANITE,
    "olmo2": _OLMO2,
    "smollm3": _SMOLLM3,
    "glm4": _GLM4,
    "command-r": _COHERE,
    "cohere2": _COHERE2,
    "starcoder2": _STARCODER2,
    "gpt-oss": _GPT_OSS,
    "deepseek2": _DEEPSEEK2,
}
"""GGUF's architectures. Files of Mistral, Falcon 3 and SmolLM2 have the architecture llama."""


def family_of(header: GGUFHeader) -> GGUFFamily:
    """Return the family of a file. Raises ModelLoadError if its architecture is not known."""
    family = FAMILIES.get(header.architecture)
    if family is None:
        raise ModelLoadError(
            f"The GGUF architecture {header.architecture!r} is not supported; use a model with one of "
            f"{', '.join(FAMILIES)}, or the model's safetensors checkpoint."
        )
    if family is _LLAMA and header.get("expert_count"):
        return _MIXTRAL
    if family is _MINISTRAL3 and not header.get("attention.temperature_scale"):
        # Mistral Small 3, whose text model is Mistral's.
        return _LLAMA
    if family is _DEEPSEEK2 and header.get("expert_gating_func") == _SIGMOID:
        return _DEEPSEEK3
    if family is _OLMO2 and header.get("attention.sliding_window"):
        return _OLMO3
    return family
