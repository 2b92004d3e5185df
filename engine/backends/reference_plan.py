"""StepPlanner: what the layers of a step share in the reference backend: slots, pages, masks, angles.

`reference.py` describes the layout of the KV cache. Layers whose attention has the same window and the same
number of heads have the same shape, and share all of these but the angles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.backends.base import RaggedBatch
from pagefleet.engine.backends.grouping import group_by_length
from pagefleet.engine.model_spec import AttentionSpec, ModelSpec, RopeSpec

__all__ = ["Angles", "AttentionPlan", "DecodeGroup", "PrefillChunk", "ReferencePlan", "StepPlanner"]

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
    """[2 * K * B * n]: rows of the flat cache, n pages per sequence, from the first that its window needs."""
    mask: torch.Tensor
    """[K * B, Q * H / K, n * block_size], or [K * B, 1, ...] if Q is 1; added to the scores: -inf for keys
    that the query may not attend to, else 0."""


@dataclass(frozen=True)
class PrefillChunk:
    """A sequence with more than NUM_GROUPED_QUERIES queries."""

    rows: slice
    pages: torch.Tensor
    """[2 * K * n], from the first page that the window of the first query needs."""
    num_context: int
    """Keys before those of the chunk, in these pages."""
    num_keys: int
    mask: torch.Tensor | None
    """bool [queries, num_keys], True if the query may attend to the key. None if plain causal attention is
    the same, or if a CPU attends to the context separately."""


class Angles(NamedTuple):
    """Cosine and sine of the rotation, each [T, 1, R / 2]."""

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True)
class AttentionPlan:
    """What the layers of one shape share."""

    slots: torch.Tensor
    """[T * 2K]: for each token, key heads then value heads, the row in the cache seen as rows of D."""
    groups: list[DecodeGroup]
    chunks: list[PrefillChunk]


@dataclass(frozen=True)
class ReferencePlan:
    """The plan of a step."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    angles: dict[RopeSpec, Angles]
    attention: list[AttentionPlan]
    """For each layer."""
    lens: list[int]
    """Tokens of each sequence in the step."""


class _Shape(NamedTuple):
    """What the plans of a layer's attention depend on."""

    group: int
    window: int | None
    num_heads: int
    num_kv_heads: int

    @classmethod
    def of(cls, spec: ModelSpec, layer: int) -> _Shape:
        attention: AttentionSpec = spec.layers[layer].attention
        return cls(spec.kv_group(layer), attention.window, attention.num_heads, attention.num_kv_heads)


class StepPlanner:
    """Makes the plans of steps for one KV cache.

    Args:
        num_blocks: for each KV group.
    """

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: Sequence[int],
        block_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._block_size, self._device, self._dtype = block_size, device, dtype
        shapes = [_Shape.of(spec, layer) for layer in range(len(spec.layers))]
        self._shapes = {shape: _ShapePlanner(shape, num_blocks[shape.group], self) for shape in shapes}
        self._layers = shapes
        self._ropes = list(dict.fromkeys(layer.attention.rope for layer in spec.layers))

    @property
    def block_size(self) -> int:
        return self._block_size

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def plan(self, batch: RaggedBatch) -> ReferencePlan:
        """See `Backend.begin_step`."""
        positions = batch.positions
        plans = {shape: planner.plan(batch, positions) for shape, planner in self._shapes.items()}
        return ReferencePlan(
            token_ids=self.to_device(batch.token_ids),
            positions=self.to_device(positions),
            angles={rope: self._angles(rope, positions) for rope in self._ropes if rope is not None},
            attention=[plans[shape] for shape in self._layers],
            lens=batch.query_lens.tolist(),
        )

    def to_device(self, array: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def _angles(self, rope: RopeSpec, positions: NDArray[np.int64]) -> Angles:
        # In float32 for every dtype, as the models were trained.
        angles = torch.outer(torch.from_numpy(positions).float(), rope.inv_freq.cpu())[:, None]
        cos, sin = angles.cos() * rope.scaling, angles.sin() * rope.scaling
        return Angles(*(each.to(device=self._device, dtype=self._dtype) for each in (cos, sin)))


class _ShapePlanner:
    """Makes the attention plans of layers with one shape."""

    def __init__(self, shape: _Shape, num_blocks: int, planner: StepPlanner) -> None:
        self._shape, self._num_blocks, self._planner = shape, num_blocks, planner
        self._block_size = planner.block_size

    def plan(self, batch: RaggedBatch, positions: NDArray[np.int64]) -> AttentionPlan:
        starts = np.cumsum(batch.query_lens) - batch.query_lens
        few = (batch.query_lens > 1) & (batch.query_lens <= NUM_GROUPED_QUERIES)
        prefills = np.flatnonzero(batch.query_lens > NUM_GROUPED_QUERIES)
        groups = [
            group
            for members in (np.flatnonzero(batch.query_lens == 1), np.flatnonzero(few))
            for group in self._decode_groups(batch, starts, members)
        ]
        return AttentionPlan(
            slots=self._planner.to_device(self._slots(batch, positions)),
            groups=groups,
            chunks=[self._prefill_chunk(batch, int(starts[index]), index) for index in prefills.tolist()],
        )

    def _slots(self, batch: RaggedBatch, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        sequence = np.repeat(np.arange(len(batch.query_lens)), batch.query_lens)
        blocks = batch.block_tables[self._shape.group][sequence, positions // self._block_size]
        heads = np.arange(2 * self._shape.num_kv_heads) * self._num_blocks * self._block_size
        slots: NDArray[np.int64] = heads + (blocks * self._block_size + positions % self._block_size)[:, None]
        return slots.ravel()

    def _first_pages(self, context_lens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first page that each sequence's first query may attend to."""
        if self._shape.window is None:
            return np.zeros_like(context_lens)
        return np.maximum(0, context_lens + 1 - self._shape.window) // self._block_size

    def _decode_groups(
        self, batch: RaggedBatch, starts: NDArray[np.int64], indices: NDArray[np.int64]
    ) -> list[DecodeGroup]:
        lengths = batch.context_lens[indices] + batch.query_lens[indices]
        num_pages = -(-lengths // self._block_size) - self._first_pages(batch.context_lens[indices])
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
        first = self._first_pages(batch.context_lens[members])
        mask = self._mask(positions, first, num_pages)
        if num_queries > 1:
            mask = mask.repeat_interleave(self._shape.num_heads // self._shape.num_kv_heads, dim=1)
        return DecodeGroup(
            rows=self._planner.to_device((starts[members, None] + queries).ravel()),
            num_queries=num_queries,
            pages=self._pages(self._blocks(batch, members, first, num_pages)),
            mask=mask.to(self._planner.device).repeat(self._shape.num_kv_heads, 1, 1),
        )

    def _blocks(
        self, batch: RaggedBatch, members: NDArray[np.int64], first: NDArray[np.int64], num_pages: int
    ) -> NDArray[np.int64]:
        """Return the blocks of `num_pages` pages of each sequence, from its first: [B, num_pages]."""
        tables = batch.block_tables[self._shape.group]
        if not first.any():
            beginnings: NDArray[np.int64] = tables[members, :num_pages]
            return beginnings
        # A page after the end of a shorter sequence is masked: any block will do.
        pages = np.minimum(first[:, None] + np.arange(num_pages), tables.shape[1] - 1)
        found: NDArray[np.int64] = tables[members[:, None], pages]
        return found

    def _mask(self, positions: NDArray[np.int64], first: NDArray[np.int64], num_pages: int) -> torch.Tensor:
        """Return 0 for keys that the queries at `positions` [B, Q] may attend to, else -inf: [B, Q, keys]."""
        keys = np.arange(num_pages * self._block_size)
        ages = (positions - first[:, None] * self._block_size)[:, :, None] - keys
        hidden = ages < 0 if self._shape.window is None else (ages < 0) | (ages >= self._shape.window)
        mask = torch.zeros(hidden.shape, dtype=self._planner.dtype)
        return mask.masked_fill_(torch.from_numpy(hidden), -torch.inf)

    def _prefill_chunk(self, batch: RaggedBatch, start: int, index: int) -> PrefillChunk:
        num_queries, context = int(batch.query_lens[index]), int(batch.context_lens[index])
        first = int(self._first_pages(batch.context_lens[index : index + 1])[0])
        last = -(-(context + num_queries) // self._block_size)
        num_context = context - first * self._block_size
        return PrefillChunk(
            rows=slice(start, start + num_queries),
            pages=self._pages(batch.block_tables[self._shape.group, index, first:last]),
            num_context=num_context,
            num_keys=num_context + num_queries,
            mask=self._chunk_mask(num_queries, num_context),
        )

    def _chunk_mask(self, num_queries: int, num_context: int) -> torch.Tensor | None:
        window, num_keys = self._shape.window, num_context + num_queries
        if window is not None and num_keys > window:
            seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=self._planner.device)
            return seen.tril_(num_context).triu_(num_context + 1 - window)
        if num_context and self._planner.device.type != "cpu":
            seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=self._planner.device)
            return seen.tril_(num_context)
        return None

    def _pages(self, blocks: NDArray[np.int64]) -> torch.Tensor:
        """Return the rows of the flat cache that contain `blocks` (any shape), for each of the 2K heads in
        turn."""
        heads = np.arange(2 * self._shape.num_kv_heads) * self._num_blocks
        return self._planner.to_device((heads[:, None] + blocks.ravel()).ravel())
