"""The tensors that a checkpoint must have. Without this check, a missing optional part would be skipped
silently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pagefleet.engine.models.decoder_config import DecoderConfig

__all__ = ["required_tensors"]


def required_tensors(family: str, config: Mapping[str, Any], decoder: DecoderConfig) -> Iterator[str]:
    """Yield the names of the tensors that the model in transformers has for this `model_type` and
    config.json."""
    yield "model.embed_tokens.weight"
    names = [f"{name}.weight" for name in _layer_weights(family)] + list(_biases(family, config))
    for index in range(decoder.num_layers):
        yield from (f"model.layers.{index}.{name}" for name in names)
    yield "model.norm.weight"
    if not decoder.tie_word_embeddings:
        yield "lm_head.weight"


def _layer_weights(family: str) -> list[str]:
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    norms = ["input_layernorm", "post_attention_layernorm"]
    head_norms = ["self_attn.q_norm", "self_attn.k_norm"] if family == "qwen3" else []
    return [*norms, *attention, *head_norms, *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]


def _biases(family: str, config: Mapping[str, Any]) -> Iterator[str]:
    if family == "qwen2":
        yield from (f"self_attn.{name}_proj.bias" for name in "qkv")
    elif family in ("llama", "qwen3") and config.get("attention_bias"):
        yield from (f"self_attn.{name}_proj.bias" for name in "qkvo")
    if family == "llama" and config.get("mlp_bias"):
        yield from (f"mlp.{name}_proj.bias" for name in ("gate", "up", "down"))
