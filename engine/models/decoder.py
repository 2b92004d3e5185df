"""Decoder: the model of all Llama-like families, written with the operations of a backend.

The checkpoint's tensors decide what a layer has: biases are applied if they exist, and queries and keys are
normalised per head if `q_norm` and `k_norm` exist (Qwen3). Does not know KV cache blocks, attention masks or
kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pagefleet.engine.backends.base import AttentionSpec, Backend
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.linear_weights import LinearWeights
from pagefleet.engine.files.weight_reader import WeightReader
from pagefleet.engine.models.decoder_config import DecoderConfig


@dataclass(frozen=True)
class HeadNorm:
    """RMS norm weights [D] applied to every query head and every key head before rotation."""

    query: torch.Tensor
    key: torch.Tensor


@dataclass(frozen=True)
class DecoderLayer:
    """The weights of one layer. Only the backend knows the format of packed weights."""

    input_norm: torch.Tensor
    qkv: Any
    head_norm: HeadNorm | None
    output: Any
    mlp_norm: torch.Tensor
    gate_up: Any
    down: Any


class Decoder:
    """A loaded model: computes hidden states and logits from token ids. The backend owns the KV cache.

    Raises ModelLoadError if the checkpoint lacks a tensor, or has one that the decoder does not use.
    """

    def __init__(self, config: DecoderConfig, weights: WeightReader, backend: Backend[Any, Any]) -> None:
        self.config = config
        self.backend = backend
        self.attention = AttentionSpec(
            config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim, config.inv_freq
        )
        embedding = weights.take("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
        self.embedding = backend.pack_vector(embedding)
        self.layers = [self._load_layer(weights, index) for index in range(config.num_layers)]
        self.norm = backend.pack_vector(weights.take("model.norm.weight", (config.hidden_size,)))
        # Some checkpoints contain a copy of the tied head; it is taken, but not used.
        head = weights.take_optional("lm_head.weight", (config.vocab_size, config.hidden_size))
        tied = config.tie_word_embeddings or head is None
        self.head = backend.pack_linear([embedding if tied or head is None else head], None)
        weights.assert_all_taken()

    def forward(self, plan: Any, rows: torch.Tensor) -> torch.Tensor:
        """Compute one step; return the hidden states of `rows` of the ragged batch, [len(rows), hidden].

        `plan` is the result of the backend's `begin_step`. The keys and values of all tokens are written to
        the KV cache.
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
        """Return the logits [N, vocab] of hidden states [N, hidden] that `forward` returned, N >= 1."""
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
        prefix, backend, config = f"model.layers.{index}", self.backend, self.config
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        width, kv_width = config.num_heads * head_dim, config.num_kv_heads * head_dim
        query_norm = weights.take_optional(f"{attention}.q_norm.weight", (head_dim,))
        head_norm = None
        if query_norm is not None:
            key_norm = weights.take(f"{attention}.k_norm.weight", (head_dim,))
            head_norm = HeadNorm(backend.pack_vector(query_norm), backend.pack_vector(key_norm))
        gate = weights.take_linear(f"{mlp}.gate_proj", (inner, hidden))
        up = weights.take_linear(f"{mlp}.up_proj", (inner, hidden))
        return DecoderLayer(
            input_norm=backend.pack_vector(weights.take(f"{prefix}.input_layernorm.weight", (hidden,))),
            qkv=self._packed(
                weights.take_linear(f"{attention}.q_proj", (width, hidden)),
                weights.take_linear(f"{attention}.k_proj", (kv_width, hidden)),
                weights.take_linear(f"{attention}.v_proj", (kv_width, hidden)),
            ),
            head_norm=head_norm,
            output=self._packed(weights.take_linear(f"{attention}.o_proj", (hidden, width))),
            mlp_norm=backend.pack_vector(
                weights.take(f"{prefix}.post_attention_layernorm.weight", (hidden,))
            ),
            gate_up=backend.pack_gated(gate.dense(), up.dense(), _biases(gate, up)),
            down=self._packed(weights.take_linear(f"{mlp}.down_proj", (hidden, inner))),
        )

    def _packed(self, *parts: LinearWeights) -> Any:
        return self.backend.pack_linear([part.dense() for part in parts], _biases(*parts))


def _biases(*parts: LinearWeights) -> list[torch.Tensor] | None:
    """Return the biases of all `parts`, or None if they have none. Raises ModelLoadError if only some do."""
    biases = [part.bias for part in parts if part.bias is not None]
    if biases and len(biases) < len(parts):
        raise ModelLoadError(
            "Some projections of one layer have a bias and others do not; download the model again."
        )
    return biases or None
