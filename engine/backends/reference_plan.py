"""StepPlanner: what the layers of a step share in the reference backend: slots, pages, masks, angles.

`reference.py` describes the layout of the KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.backends.base import AttentionSpec, RaggedBatch
from pagefleet.engine.backends.grouping import group_by_length

__all__ = ["DecodeGroup", "PrefillChunk", "ReferencePlan", "StepPlanner"]

GROUP_COST = 96
"""The cost of an attention group, in gathered pages; measured on a CPU with SmolLM2-135M."""
NUM_GROUPED_QUERIES = 16
"""The largest number of new tokens of a sequence that is attended to in a group."""


@dataclass(frozen=True)
class DecodeGroup:
    """A group of B sequences of similar length, with Q queries each; the last query is repeated if there are
    fewer."""

    rows: torch.Tensor
    """[B * Q]: the rows of the queries in the ragged batch."""
    num_queries: int
    pages: torch.Tensor
    """[2 * K * B * n]: rows of the flat cache, n pages per sequence."""
    mask: torch.Tensor
    """[K * B, Q * H / K, n * block_size], or [K * B, 1, ...] if Q is 1; added to the scores: -inf for keys
    after the query, else 0."""


@dataclass(frozen=True)
class PrefillChunk:
    """A sequence with more than NUM_GROUPED_QUERIES queries."""

    rows: slice
    pages: torch.Tensor
    """[2 * K * n]"""
    num_context: int
    """Keys before those of the chunk."""
    num_keys: int
    mask: torch.Tensor | None
    """bool [queries, num_keys], True if the query may attend to the key. None if there is no context, or on
    a CPU, which attends to the context separately."""


@dataclass(frozen=True)
class ReferencePlan:
    """The plan of a step: what all its layers share."""

    token_ids: torch.Tensor
    cos: torch.Tensor
    """[T, 1, D / 2]"""
    sin: torch.Tensor
    slots: torch.Tensor
    """[T * 2K]: for each token, key heads then value heads, the row in the cache seen as rows of D."""
    groups: list[DecodeGroup]
    chunks: list[PrefillChunk]


@dataclass(frozen=True)
class StepPlanner:
    """Makes the plans of steps for one KV cache."""

    spec: AttentionSpec
    num_blocks: int
    block_size: int
    device: torch.device
    dtype: torch.dtype

    def plan(self, batch: RaggedBatch) -> ReferencePlan:
        """See `Backend.begin_step`."""
        positions = batch.positions
        starts = np.cumsum(batch.query_lens) - batch.query_lens
        few = (batch.query_lens > 1) & (batch.query_lens <= NUM_GROUPED_QUERIES)
        prefills = np.flatnonzero(batch.query_lens > NUM_GROUPED_QUERIES)
        groups = [
            group
            for members in (np.flatnonzero(batch.query_lens == 1), np.flatnonzero(few))
            for group in self._decode_groups(batch, starts, members)
        ]
        # In float32 for every dtype, as the models were trained.
        angles = torch.outer(torch.from_numpy(positions).float(), self.spec.inv_freq.cpu())[:, None]
        return ReferencePlan(
            token_ids=self._to_device(batch.token_ids),
            cos=angles.cos().to(device=self.device, dtype=self.dtype),
            sin=angles.sin().to(device=self.device, dtype=self.dtype),
            slots=self._to_device(self._slots(batch, positions)),
            groups=groups,
            chunks=[self._prefill_chunk(batch, int(starts[index]), index) for index in prefills.tolist()],
        )

    def _slots(self, batch: RaggedBatch, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        sequence = np.repeat(np.arange(len(batch.query_lens)), batch.query_lens)
        blocks = batch.block_tables[sequence, positions // self.block_size]
        heads = np.arange(2 * self.spec.num_kv_heads) * self.num_blocks * self.block_size
        slots = heads + (blocks * self.block_size + positions % self.block_size)[:, None]
        return slots.ravel()

    def _decode_groups(
        self, batch: RaggedBatch, starts: NDArray[np.int64], indices: NDArray[np.int64]
    ) -> list[DecodeGroup]:
        lengths = batch.context_lens[indices] + batch.query_lens[indices]
        num_pages = -(-lengths // self.block_size)
        return [
            self._decode_group(batch, starts, indices[members], int(num_pages[members].max()))
            for members in group_by_length(num_pages, GROUP_COST)
        ]

    def _decode_group(
        self, batch: RaggedBatch, starts: NDArray[np.int64], members: NDArray[np.int64], num_pages: int
    ) -> DecodeGroup:
        query_lens = batch.query_lens[members]
        num_queries = int(query_lens.max())
        # [B, Q]
        queries = np.minimum(np.arange(num_queries), query_lens[:, None] - 1)
        positions = batch.context_lens[members, None] + queries
        unseen = torch.from_numpy(np.arange(num_pages * self.block_size) > positions[:, :, None])
        mask = torch.zeros(unseen.shape, dtype=self.dtype).masked_fill_(unseen, -torch.inf)
        if num_queries > 1:
            mask = mask.repeat_interleave(self.spec.num_heads // self.spec.num_kv_heads, dim=1)
        return DecodeGroup(
            rows=self._to_device((starts[members, None] + queries).ravel()),
            num_queries=num_queries,
            pages=self._pages(batch.block_tables[members, :num_pages]),
            mask=mask.to(self.device).repeat(self.spec.num_kv_heads, 1, 1),
        )

    def _prefill_chunk(self, batch: RaggedBatch, start: int, index: int) -> PrefillChunk:
        num_queries, context = int(batch.query_lens[index]), int(batch.context_lens[index])
        num_keys = context + num_queries
        mask = None
        if context and self.device.type != "cpu":
            mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=self.device).tril_(context)
        num_pages = -(-num_keys // self.block_size)
        pages = self._pages(batch.block_tables[index, :num_pages])
        return PrefillChunk(slice(start, start + num_queries), pages, context, num_keys, mask)

    def _pages(self, blocks: NDArray[np.int64]) -> torch.Tensor:
        """Return the rows of the flat cache that contain `blocks` (any shape), for each of the 2K heads in
        turn."""
        heads = np.arange(2 * self.spec.num_kv_heads) * self.num_blocks
        return self._to_device((heads[:, None] + blocks.ravel()).ravel())

    def _to_device(self, array: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)
