"""One decoder for the Llama-like families, written against the backend's operations.

The checkpoint's names decide what a layer has: biases are applied where they exist, and queries and keys
are normalised per head where `q_norm` and `k_norm` exist (Qwen3). Knows nothing of blocks, masks, kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pagefleet.engine.backends.base import AttentionSpec, Backend
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.weight_reader import WeightReader
from pagefleet.engine.models.decoder_config import DecoderConfig


@dataclass(frozen=True)
class HeadNorm:
    """RMS norm weights [D] applied to every query head and every key head before rotation."""

    query: torch.Tensor
    key: torch.Tensor


@dataclass(frozen=True)
class DecoderLayer:
    """One block's weights; the packed ones are opaque to everything but the backend."""

    input_norm: torch.Tensor
    qkv: Any
    head_norm: HeadNorm | None
    output: Any
    mlp_norm: torch.Tensor
    gate_up: Any
    down: Any


class Decoder:
    """Token ids in, hidden states and logits out; the KV cache is the backend's.

    Raises ModelLoadError when the checkpoint lacks a tensor or holds one that the decoder would not use.
    """

    def __init__(self, config: DecoderConfig, weights: WeightReader, backend: Backend[Any, Any]) -> None:
        self.config = config
        self.backend = backend
        self.attention = AttentionSpec(
            config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim, config.inv_freq
        )
        embedding = weights.take("model.embed_tokens.weight")
        if embedding.shape != (config.vocab_size, config.hidden_size):
            raise ModelLoadError(
                f"The embedding is {tuple(embedding.shape)}, but config.json says "
                f"{(config.vocab_size, config.hidden_size)}; the files belong to different models."
            )
        self.embedding = backend.pack_vector(embedding)
        self.layers = [self._load_layer(weights, index) for index in range(config.num_layers)]
        self.norm = backend.pack_vector(weights.take("model.norm.weight"))
        # Some files have a copy of the tied head.
        head = weights.take_optional("lm_head.weight")
        tied = config.tie_word_embeddings or head is None
        self.head = backend.pack_linear([embedding if tied or head is None else head], None)
        weights.assert_all_taken()

    def forward(self, plan: Any, rows: torch.Tensor) -> torch.Tensor:
        """One step: what `logits` takes, [len(rows), hidden], of those rows of the ragged batch.

        `plan` is what the backend's `begin_step` returned; every token's keys and values are written.
        """
        backend, eps = self.backend, self.config.rms_norm_eps
        residual = backend.embedding(plan, self.embedding)
        hidden = backend.rms_norm(residual, self.layers[0].input_norm, eps)
        for index, layer in enumerate(self.layers):
            if index > 0:
                hidden, residual = backend.add_rms_norm(hidden, residual, layer.input_norm, eps)
            hidden = self._attend(plan, index, layer, hidden)
            hidden, residual = backend.add_rms_norm(hidden, residual, layer.mlp_norm, eps)
            hidden = backend.linear(backend.gated_linear(hidden, layer.gate_up), layer.down)
        if len(rows) == 0:
            return hidden[:0]
        hidden, _ = backend.add_rms_norm(hidden[rows], residual[rows], self.norm, eps)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of rows that `forward` returned, at least one: [N, vocab]."""
        return self.backend.logits(hidden, self.head)

    def _attend(self, plan: Any, index: int, layer: DecoderLayer, hidden: torch.Tensor) -> torch.Tensor:
        backend = self.backend
        qkv = backend.linear(hidden, layer.qkv)
        if layer.head_norm is not None:
            qkv = self._normalise_heads(qkv, layer.head_norm)
        query = backend.rope_and_cache(plan, index, qkv)
        return backend.linear(backend.paged_attention(plan, index, query), layer.output)

    def _normalise_heads(self, qkv: torch.Tensor, norm: HeadNorm) -> torch.Tensor:
        config = self.config
        heads = qkv.view(len(qkv), -1, config.head_dim)
        query, key, value = torch.split(
            heads, [config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1
        )
        query = self.backend.rms_norm(query, norm.query, config.rms_norm_eps)
        key = self.backend.rms_norm(key, norm.key, config.rms_norm_eps)
        return torch.cat([query, key, value], dim=1).view(len(qkv), -1)

    def _load_layer(self, weights: WeightReader, index: int) -> DecoderLayer:
        prefix, backend = f"model.layers.{index}", self.backend
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        query_norm = weights.take_optional(f"{attention}.q_norm.weight")
        head_norm = None
        if query_norm is not None:
            key_norm = weights.take(f"{attention}.k_norm.weight")
            head_norm = HeadNorm(backend.pack_vector(query_norm), backend.pack_vector(key_norm))
        gate, up = weights.take(f"{mlp}.gate_proj.weight"), weights.take(f"{mlp}.up_proj.weight")
        return DecoderLayer(
            input_norm=backend.pack_vector(weights.take(f"{prefix}.input_layernorm.weight")),
            qkv=self._load_linear(weights, *(f"{attention}.{name}_proj" for name in "qkv")),
            head_norm=head_norm,
            output=self._load_linear(weights, f"{attention}.o_proj"),
            mlp_norm=backend.pack_vector(weights.take(f"{prefix}.post_attention_layernorm.weight")),
            gate_up=backend.pack_gated(gate, up, _biases(weights, f"{mlp}.gate_proj", f"{mlp}.up_proj")),
            down=self._load_linear(weights, f"{mlp}.down_proj"),
        )

    def _load_linear(self, weights: WeightReader, *names: str) -> Any:
        matrices = [weights.take(f"{name}.weight") for name in names]
        return self.backend.pack_linear(matrices, _biases(weights, *names))


def _biases(weights: WeightReader, *names: str) -> list[torch.Tensor] | None:
    """The biases of all `names`, or None if the first has none: they come together or not at all."""
    if f"{names[0]}.bias" not in weights:
        return None
    return [weights.take(f"{name}.bias") for name in names]
