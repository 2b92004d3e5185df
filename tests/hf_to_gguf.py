"""Writes a checkpoint of transformers as a GGUF file, as llama.cpp's converter does.

The names of the tensors are those of gguf-py's own map; the changes to their values are stated here from the
converter's sources.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight")
PERMUTED = ("llama", "granite", "mistral3", "smollm3")
SHIFTED = ("gemma", "gemma2", "gemma3")
Quantised = dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]]


def hf_to_gguf(
    folder: Path, path: Path, architecture: str, quantised: Quantised | None = None, **metadata: Any
) -> None:
    """Write the float32 checkpoint in `folder` to `path`.

    `metadata` has more of the architecture's keys, with __ for a dot. `quantised` replaces tensors, by their
    names in GGUF.
    """
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    _write_sizes(writer, config)
    for key, value in metadata.items():
        name = f"{architecture}.{key.replace('__', '.')}"
        kind = gguf.GGUFValueType.get_type(value)
        writer.add_key_value(name, value, kind, gguf.GGUFValueType.BOOL if isinstance(value, list) else None)
    _write_tokenizer(writer, config["vocab_size"])
    for name, tensor in converted(folder, config, architecture).items():
        data, kind = (quantised or {}).get(name, (tensor, gguf.GGMLQuantizationType.F32))
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def converted(folder: Path, config: dict[str, Any], architecture: str) -> dict[str, np.ndarray]:
    """The tensors of the file."""
    kind = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    found = {}
    tensors = _split(_stacked(load_file(folder / "model.safetensors")))
    for name, tensor in _latent(tensors, config).items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        found[target] = _changed(name, tensor, config, architecture)
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "llama3":
        found["rope_freqs.weight"] = llama3_factors(rope, _head_dim(config))
    if rope.get("rope_type") == "longrope":
        for length in ("long", "short"):
            found[f"rope_factors_{length}.weight"] = np.array(rope[f"{length}_factor"], np.float32)
    return found


def _changed(name: str, tensor: np.ndarray, config: dict[str, Any], architecture: str) -> np.ndarray:
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    module = name.split(".")[-2]
    if architecture in PERMUTED and module in heads:
        count, rows = config[heads[module]], tensor.shape[0]
        halves = tensor.reshape(count, 2, rows // count // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    if architecture in SHIFTED and name.endswith("norm.weight"):
        return tensor + np.float32(1)
    return tensor[0] if "shared_expert_gate" in name else tensor


def _stacked(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With the matrices of all experts of a layer as one tensor."""
    experts: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    found = {}
    for name, tensor in tensors.items():
        if match := _EXPERT.fullmatch(name):
            experts[f"{match[1]}.{match[3]}.weight"][int(match[2])] = tensor
        else:
            found[name] = tensor
    return found | {
        name: np.stack([parts[each] for each in sorted(parts)]) for name, parts in experts.items()
    }


def _split(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With gate and up of gpt-oss's experts apart, and its matrices transposed."""
    found = {}
    for name, tensor in tensors.items():
        base, is_bias = name.removesuffix("_bias"), name.endswith("_bias")
        suffix = "bias" if is_bias else "weight"
        oriented = tensor.swapaxes(-1, -2) if tensor.ndim > 2 else tensor
        if base.endswith("experts.gate_up_proj"):
            prefix = base.removesuffix("gate_up_proj")
            found[f"{prefix}gate_proj.{suffix}"] = np.ascontiguousarray(oriented[:, ::2])
            found[f"{prefix}up_proj.{suffix}"] = np.ascontiguousarray(oriented[:, 1::2])
        elif base.endswith("experts.down_proj"):
            found[f"{base}.{suffix}"] = np.ascontiguousarray(oriented)
        else:
            found[f"{name}.weight" if name.endswith("sinks") else name] = tensor
    return found


def _latent(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> dict[str, np.ndarray]:
    """With the keys and values of DeepSeek's latent attention apart, for each head."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith("kv_b_proj.weight"):
            plain = config["qk_nope_head_dim"]
            by_head = tensor.reshape(config["num_attention_heads"], -1, config["kv_lora_rank"])
            keys = by_head[:, :plain].swapaxes(1, 2)
            found[name.replace("kv_b", "k_b")] = np.ascontiguousarray(keys)
            found[name.replace("kv_b", "v_b")] = np.ascontiguousarray(by_head[:, plain:])
        else:
            found[name.replace("e_score_correction_bias", "e_score_correction.bias")] = tensor
    return found


def llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """What each frequency is divided by."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original, factors = rope["original_max_position_embeddings"], []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (index / head_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def _head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _write_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """What the converter writes for all architectures."""
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    is_latent = "kv_lora_rank" in config
    writer.add_head_count_kv(1 if is_latent else config["num_key_value_heads"])
    writer.add_rope_freq_base(rope["rope_theta"])
    rotated = int(_head_dim(config) * rope.get("partial_rotary_factor", 1.0))
    writer.add_rope_dimension_count(config["qk_rope_head_dim"] if is_latent else rotated)
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    elif eps := config.get("layer_norm_eps", config.get("norm_epsilon")):
        writer.add_layer_norm_eps(eps)
    if is_latent:
        _write_latent_sizes(writer, config)
    elif config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if experts := config.get("num_local_experts", config.get("num_experts", config.get("n_routed_experts"))):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _write_latent_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rank, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
    if config.get("q_lora_rank"):
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + rotated)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rotated)
    writer.add_value_length_mla(config["v_head_dim"])


def _write_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    tokens = ["<|end|>", "Ġ", "a", "b", "ab", *(f"t{index}" for index in range(5, size))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (size - 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
