"""ReferenceBackend: the backend in plain torch, for any dtype and device. Other backends are compared with
it.

KV cache layout, one tensor per layer: [2 (keys, values), K, num_blocks, block_size, D]. Seen as rows of
block_size * D, one `index_select` gathers the pages of a whole group of sequences, keys and values at
once, in the order that a batched matrix product needs: [2, K, B, length, D]. Values of fewer elements are
padded with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pagefleet.engine.backends.base import AttentionWeights, RaggedBatch
from pagefleet.engine.backends.reference_attention import (
    Pages,
    attend_chunk,
    attend_group,
    attend_whole,
    growth,
    rotate,
)
from pagefleet.engine.backends.reference_plan import AttentionPlan, ReferencePlan, StepPlanner
from pagefleet.engine.backends.torch_backend import TorchBackend
from pagefleet.engine.model_spec import ModelSpec


class ReferenceBackend(TorchBackend[ReferencePlan]):
    """The backend in plain torch; `Backend` describes its operations."""

    @property
    def name(self) -> str:
        return "reference"

    def allocate_kv_cache(self, spec: ModelSpec, num_blocks: Sequence[int], block_size: int) -> None:
        self._attention = [layer.attention for layer in spec.layers]
        self._planner = StepPlanner(spec, num_blocks, block_size, self.device, self.dtype)
        layers = [
            self._zeros((2 * each.num_kv_heads, num_blocks[spec.kv_group(index)], block_size, each.head_dim))
            for index, each in enumerate(self._attention)
            if each.causal
        ]
        self._pages = Pages(layers, block_size)

    def begin_step(self, batch: RaggedBatch) -> ReferencePlan:
        return self._planner.plan(batch)

    def attend(
        self, plan: ReferencePlan, layer: int, qkv: torch.Tensor, weights: AttentionWeights
    ) -> torch.Tensor:
        spec = self._attention[layer]
        heads, value = self._split_heads(qkv, spec, weights)
        if spec.rope is not None:
            heads = rotate(heads, plan.angles[spec.rope], spec.rope)
        query, key = heads[:, : spec.num_heads], heads[:, spec.num_heads :]
        if spec.query_growth is not None:
            query = query * growth(plan.positions, spec.query_growth, self.dtype)
        if spec.causal:
            step = plan.attention[layer]
            self._pages.write(layer, step.slots, key, value)
            output = self._attend_paged(step, layer, query, weights.sinks)
        else:
            output = attend_whole(query, key, value, spec, plan.lens)
        if spec.value_dim is not None:
            output = output[..., : spec.value_dim]
        return output.reshape(len(qkv), -1)

    def _attend_paged(
        self, step: AttentionPlan, layer: int, query: torch.Tensor, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the attention of queries [T, H, D] over the cached tokens of their sequences: [T, H, D]."""
        spec = self._attention[layer]
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        for group in step.groups:
            gathered = self._pages.gather(layer, group.pages)
            attended = attend_group(group, query[group.rows], gathered, spec, sinks)
            output.index_copy_(0, group.rows, attended)
        for chunk in step.chunks:
            gathered = self._pages.gather(layer, chunk.pages)
            output[chunk.rows] = attend_chunk(chunk, query[chunk.rows], gathered, spec, sinks)
        return output
