"""config.json of a GGUF file, in the form of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.gguf.header import GGUFHeader
from pagefleet.engine.loading.gguf.family import GGUFFamily
from pagefleet.engine.loading.gguf.rope import rope_parameters

__all__ = ["config_json", "end_token_ids"]

_SIZES: Final = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
}
_ENDS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")
"""The tokens that end a text, a turn, and a message that expects a tool's result."""
_LOCAL_THETA: Final = 10_000.0
_GEMMA_27B: Final = {"gemma2": 46, "gemma3_text": 62}
"""The layers of the models whose queries are scaled by hidden size / heads, not by the head's dimension."""


def config_json(header: GGUFHeader, family: GGUFFamily) -> dict[str, Any]:
    """Return the content of config.json. Raises ModelLoadError if the metadata lacks a size, or has
    different sizes for the layers."""
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": header.dtype,
        **{name: _size(header, key) for name, key in _SIZES.items()},
        "vocab_size": _vocab_size(header),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
        **family.constants,
    }
    config["num_key_value_heads"] = _size(header, "attention.head_count_kv", config["num_attention_heads"])
    config["head_dim"] = _head_dim(header, family, config)
    eps = header.get("attention.layer_norm_rms_epsilon", header.get("attention.layer_norm_epsilon"))
    config |= {} if eps is None else {family.eps: eps}
    found = {name: header.get(key) for name, key in family.keys.items()}
    # The window 0 of Phi-4 means none.
    config |= {name: value for name, value in found.items() if value not in (None, 0)}
    config["rope_parameters"] = rope_parameters(header, config["head_dim"])
    if family.full_attention_interval:
        config["layer_types"] = _layer_types(header, family, config["num_hidden_layers"])
    config |= _special_token_ids(header)
    adjust = _ADJUSTMENTS.get(family.model_type)
    return config | (adjust(header, config) if adjust else {})


def end_token_ids(header: GGUFHeader) -> list[int]:
    """Return the ids of the tokens that end a text."""
    found = [header.metadata.get(f"tokenizer.ggml.{name}") for name in _ENDS]
    size = _vocab_size(header)
    return list(dict.fromkeys(each for each in found if each is not None and 0 <= each < size))


def _size(header: GGUFHeader, key: str, default: int | None = None) -> int:
    value = header.get(key, default)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise ModelLoadError(
                f"The metadata {header.architecture}.{key} differs between layers, which is not supported; "
                "use a different model."
            )
        value = value[0]
    if not isinstance(value, int):
        raise ModelLoadError(
            f"The metadata {header.architecture}.{key} must be a number, not {value!r}; download a different "
            "file."
        )
    return value


def _vocab_size(header: GGUFHeader) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelLoadError("Tensors are missing (1): token_embd.weight; download the file again.")
    return embedding.shape[0]


def _head_dim(header: GGUFHeader, family: GGUFFamily, config: dict[str, Any]) -> int:
    computed: int = config["hidden_size"] // config["num_attention_heads"]
    # llama.cpp wrote no key length for older Llama files whose heads are not hidden size / heads.
    rotated = header.get("rope.dimension_count", computed) if family.interleaves else computed
    return _size(header, "attention.key_length", rotated)


def _layer_types(header: GGUFHeader, family: GGUFFamily, num_layers: int) -> list[str]:
    pattern = header.get("attention.sliding_window_pattern", family.full_attention_interval)
    if isinstance(pattern, int):
        pattern = [(layer + 1) % pattern != 0 for layer in range(num_layers)]
    return ["sliding_attention" if slides else "full_attention" for slides in pattern[:num_layers]]


def _special_token_ids(header: GGUFHeader) -> dict[str, Any]:
    names = {"bos_token_id": "bos_token_id", "pad_token_id": "padding_token_id"}
    # null if missing: transformers has defaults for some families that exceed a small vocabulary.
    found = {name: header.metadata.get(f"tokenizer.ggml.{key}") for name, key in names.items()}
    return found | {"eos_token_id": end_token_ids(header) or None}


# -- what single families need ---------------------------------------------------------------------------


def _gemma(_header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    is_27b = config["num_hidden_layers"] == _GEMMA_27B.get(config["model_type"])
    by_heads = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": by_heads if is_27b else config["head_dim"]}


def _gemma3(header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    theta = header.get("rope.freq_base_swa", _LOCAL_THETA)
    return _gemma(header, config) | _local_rope(config, theta)


def _olmo3(_header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    return _local_rope(config, config["rope_parameters"]["rope_theta"])


def _local_rope(config: dict[str, Any], theta: float) -> dict[str, Any]:
    """Return the parameters of a model whose layers with windows have rotary embeddings without scaling."""
    local = {"rope_type": "default", "rope_theta": theta}
    return {"rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": local}}


def _smollm3(_header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    interval, num_layers = config["no_rope_layer_interval"], config["num_hidden_layers"]
    return {
        "no_rope_layers": [int((layer + 1) % interval != 0) for layer in range(num_layers)],
        "layer_types": ["full_attention"] * num_layers,
    }


def _cohere(header: GGUFHeader, _config: dict[str, Any]) -> dict[str, Any]:
    return {"use_qk_norm": "blk.0.attn_q_norm.weight" in header.tensors}


def _ministral3(header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    growth = {"llama_4_scaling_beta": header.get("attention.temperature_scale")}
    return {"rope_parameters": config["rope_parameters"] | growth}


def _gpt_oss(_header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    return {"rope_parameters": config["rope_parameters"] | {"truncate": False}}


def _deepseek(header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    """The lengths of keys and values are those of the latent ones, unless the file is an older one."""
    rotated = config["qk_rope_head_dim"]
    key = header.get("attention.key_length_mla", header.get("attention.key_length"))
    parameters = {
        name: value for name, value in config["rope_parameters"].items() if name != "partial_rotary_factor"
    }
    if parameters.get("mscale_all_dim"):
        # Multiplied by 0.1 in the file; llama.cpp assumes that both are the same.
        scale = round(parameters["mscale_all_dim"] * 10, 6)
        parameters |= {"mscale": scale, "mscale_all_dim": scale}
    return {
        "num_key_value_heads": config["num_attention_heads"],
        "head_dim": rotated,
        "q_lora_rank": config.get("q_lora_rank"),
        "qk_nope_head_dim": key - rotated,
        "v_head_dim": header.get("attention.value_length_mla", header.get("attention.value_length")),
        "first_k_dense_replace": header.get("leading_dense_block_count", 0),
        "norm_topk_prob": bool(header.get("expert_weights_norm", False)),
        "topk_method": "group_limited_greedy" if config.get("n_group", 1) > 1 else "greedy",
        "attention_bias": "blk.0.attn_output.bias" in header.tensors,
        "rope_interleave": True,
        "rope_parameters": parameters,
    }


_ADJUSTMENTS: Final[Mapping[str, Callable[[GGUFHeader, dict[str, Any]], dict[str, Any]]]] = {
    "gemma2": _gemma,
    "gemma3_text": _gemma3,
    "olmo3": _olmo3,
    "smollm3": _smollm3,
    "cohere": _cohere,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "ministral3": _ministral3,
}
