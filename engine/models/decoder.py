"""Decoder: runs the model that a ModelSpec describes, with the operations of a backend.

Does not know families, KV cache blocks, attention masks or kernels.
"""

from __future__ import annotations

from typing import Any

import torch

from pagefleet.engine.backends.base import Backend, MoeWeights, Normed, NormWeights
from pagefleet.engine.model_spec import ModelSpec
from pagefleet.engine.models.decoder_loader import DecoderLayer, DecoderWeights, LatentWeights
from pagefleet.engine.models.model import Model

__all__ = ["Decoder"]


class Decoder(Model):
    """The model of all native families."""

    def __init__(self, spec: ModelSpec, weights: DecoderWeights, backend: Backend[Any, Any]) -> None:
        self.spec = spec
        self.backend = backend
        self._weights = weights
        # Models that scale their embeddings are trained with a factor in the dtype of these (Gemma).
        self._embed_scale = torch.tensor(spec.embed_scale, dtype=backend.dtype).item()

    def forward(self, plan: Any, rows: torch.Tensor) -> torch.Tensor:
        """See `Model.forward`. The states are the last hidden ones: [len(rows), hidden]."""
        backend, weights = self.backend, self._weights
        residual = self._embed(plan)
        hidden: torch.Tensor | None = None
        for index, layer in enumerate(weights.layers):
            normed, residual = self._join(hidden, residual, layer.pre_attention, layer.spec.residual_scale)
            attended = self._attend(plan, index, layer, normed)
            if layer.spec.norm_after_add:
                residual, hidden = self._layer_norm_after_add(layer, attended, residual), None
            elif layer.spec.parallel:
                hidden = attended + self._mlp(layer, self._parallel_input(layer, normed, residual))
            else:
                attended = self._norm(attended, layer.post_attention)
                normed, residual = self._join(attended, residual, layer.pre_mlp, layer.spec.residual_scale)
                hidden = self._norm(self._mlp(layer, normed), layer.post_mlp)
        if len(rows) == 0:
            return residual[:0]
        hidden = None if hidden is None else hidden[rows]
        scale = self.spec.layers[-1].residual_scale
        hidden, _ = self._join(hidden, residual[rows], weights.final_norm, scale)
        return hidden if weights.project_out is None else backend.linear(hidden, weights.project_out)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.backend.logits(hidden, self._weights.head)
        if self.spec.logit_scale != 1.0:
            logits = logits * self.spec.logit_scale
        cap = self.spec.logit_soft_cap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _embed(self, plan: Any) -> torch.Tensor:
        spec, weights, backend = self.spec, self._weights, self.backend
        hidden = backend.embedding(plan, weights.embedding)
        if self._embed_scale != 1.0:
            hidden = hidden * self._embed_scale
        if weights.project_in is not None:
            hidden = backend.linear(hidden, weights.project_in)
        if spec.positions is not None:
            assert weights.positions is not None
            hidden = hidden + backend.position_embedding(plan, weights.positions, spec.positions.offset)
        return hidden

    def _join(
        self, hidden: torch.Tensor | None, residual: torch.Tensor, norm: NormWeights | None, scale: float
    ) -> Normed:
        """Add `hidden`, if there is one, to the residual; return the normalised sum and the sum."""
        if hidden is None:
            return Normed(self._norm(residual, norm), residual)
        return self.backend.add_norm(hidden, residual, norm, scale)

    def _norm(self, hidden: torch.Tensor, norm: NormWeights | None) -> torch.Tensor:
        return hidden if norm is None else self.backend.norm(hidden, norm)

    def _parallel_input(
        self, layer: DecoderLayer, normed: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        return normed if layer.pre_mlp is None else self.backend.norm(residual, layer.pre_mlp)

    def _layer_norm_after_add(
        self, layer: DecoderLayer, attended: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        """Return the result of a layer of the original Transformer (Vaswani et al. 2017)."""
        normed, _ = self._join(attended, residual, layer.post_attention, layer.spec.residual_scale)
        added = self._mlp(layer, normed)
        return self._join(added, normed, layer.post_mlp, layer.spec.residual_scale).hidden

    def _attend(self, plan: Any, index: int, layer: DecoderLayer, hidden: torch.Tensor) -> torch.Tensor:
        backend = self.backend
        qkv = (
            self._latent_qkv(layer, layer.qkv, hidden)
            if isinstance(layer.qkv, LatentWeights)
            else backend.linear(hidden, layer.qkv)
        )
        return backend.linear(backend.attend(plan, index, qkv, layer.attention), layer.output)

    def _latent_qkv(self, layer: DecoderLayer, weights: LatentWeights, hidden: torch.Tensor) -> torch.Tensor:
        """Return the decompressed queries, keys and values of latent attention: [T, H * (2 * D + V)].

        The rotated part of a key is one for all heads, and is projected without compression.
        """
        backend, attention = self.backend, layer.spec.attention
        latent, num_heads = attention.latent, attention.num_heads
        assert latent is not None
        value_dim = attention.value_dim or attention.head_dim
        query_input = hidden
        if weights.query_down is not None:
            assert weights.query_norm is not None
            query_input = backend.norm(backend.linear(hidden, weights.query_down), weights.query_norm)
        query = backend.linear(query_input, weights.query)
        down = backend.linear(hidden, weights.kv_down)
        compressed, rotated = down[:, : latent.kv_rank], down[:, latent.kv_rank :]
        normed = backend.norm(compressed, weights.kv_norm)
        plain = attention.head_dim - latent.rope_dim
        heads = backend.linear(normed, weights.kv).view(-1, num_heads, plain + value_dim)
        key = torch.cat([heads[:, :, :plain], rotated[:, None].expand(-1, num_heads, -1)], dim=-1)
        return torch.cat([query, key.flatten(1), heads[:, :, plain:].flatten(1)], dim=-1)

    def _mlp(self, layer: DecoderLayer, hidden: torch.Tensor) -> torch.Tensor:
        backend, mlp = self.backend, layer.mlp
        if not isinstance(mlp, MoeWeights):
            return backend.mlp(hidden, mlp.up, mlp.down, mlp.spec)
        output = backend.experts(hidden, mlp)
        if layer.shared is None:
            return output
        shared = backend.mlp(hidden, layer.shared.up, layer.shared.down, layer.shared.spec)
        if layer.shared_gate is not None:
            shared = shared * torch.sigmoid(backend.linear(hidden, layer.shared_gate))
        return output + shared
