"""CpuPlanner: what the layers of a step share in the CPU backend: the schedule and the angles."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.backends.base import RaggedBatch
from pagefleet.engine.backends.cpu.native import Kernels, LayerArguments, Library, StepArguments
from pagefleet.engine.backends.reference_attention import growth
from pagefleet.engine.backends.reference_plan import Angles
from pagefleet.engine.model_spec import AttentionSpec, ModelSpec, QueryGrowthSpec, RopeSpec

__all__ = ["CpuPlan", "CpuPlanner", "layer_arguments"]


class LayerKind(NamedTuple):
    """What a step's arguments depend on. Most models have one or two kinds of layers."""

    group: int
    window: int | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int | None
    rope: RopeSpec | None
    growth: QueryGrowthSpec | None

    @classmethod
    def of(cls, spec: ModelSpec, layer: int) -> LayerKind:
        each: AttentionSpec = spec.layers[layer].attention
        return cls(
            spec.kv_group(layer), each.window, each.num_heads, each.num_kv_heads, each.head_dim,
            each.value_dim, each.rope, each.query_growth,
        )  # fmt: skip


@dataclass(frozen=True)
class CpuPlan:
    """The plan of a step."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    steps: list[StepArguments]
    """For each layer."""
    angles: dict[RopeSpec, Angles]
    """Cosine and sine, each [T, R / 2], in float32 or wider."""
    lens: list[int]
    """Tokens of each sequence in the step."""
    memory: list[Any]
    """The arrays that `steps` point into."""


def layer_arguments(spec: AttentionSpec, block_size: int) -> LayerArguments:
    """Return the arguments that a layer's description determines."""
    arguments = LayerArguments(
        scale=spec.scale,
        soft_cap=spec.soft_cap or 0.0,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        value_dim=spec.value_dim or spec.head_dim,
        block_size=block_size,
        window=spec.window or 0,
    )
    if spec.rope is not None:
        arguments.rotated = 2 * len(spec.rope.inv_freq)
        arguments.first_rotated = spec.rope.start
        arguments.interleaved = spec.rope.interleaved
    return arguments


class CpuPlanner:
    """Makes the plans of steps for one KV cache."""

    def __init__(
        self, spec: ModelSpec, block_size: int, dtype: torch.dtype, library: Library, kernels: Kernels
    ) -> None:
        self._block_size, self._library, self._kernels = block_size, library, kernels
        self._wide = torch.promote_types(dtype, torch.float32)
        self._layers = [LayerKind.of(spec, layer) for layer in range(len(spec.layers))]
        self._kinds = {
            kind: layer_arguments(layer.attention, block_size)
            for kind, layer in zip(self._layers, spec.layers, strict=True)
        }
        self._ropes = list(dict.fromkeys(kind.rope for kind in self._kinds if kind.rope is not None))
        self._growths = list(dict.fromkeys(kind.growth for kind in self._kinds if kind.growth is not None))
        self._workspace = np.empty(0, dtype=np.uint8)

    def plan(self, batch: RaggedBatch) -> CpuPlan:
        """See `Backend.begin_step`."""
        positions = np.ascontiguousarray(batch.positions)
        tokens = torch.from_numpy(positions)
        angles = {rope: self._angles(rope, tokens) for rope in self._ropes}
        growths = {each: growth(tokens, each, self._wide).flatten() for each in self._growths}
        lens = np.ascontiguousarray(batch.query_lens)
        contexts = np.ascontiguousarray(batch.context_lens)
        starts = np.cumsum(lens) - lens
        sequences = np.repeat(np.arange(len(lens)), lens)
        tables = np.ascontiguousarray(batch.block_tables)
        memory: list[Any] = [positions, angles, growths, contexts, starts, sequences, tables]
        shared = {
            "positions": _address(positions),
            "sequences": _address(sequences),
            "starts": _address(starts),
            "context_lens": _address(contexts),
            "num_tokens": len(positions),
            "table_width": tables.shape[-1],
            "num_threads": torch.get_num_threads(),
        }
        steps = {}
        for kind in self._kinds:
            step = StepArguments(**shared, block_tables=_address(tables[kind.group]))
            if kind.rope is not None:
                step.cosines, step.sines = (each.data_ptr() for each in angles[kind.rope])
            if kind.growth is not None:
                step.query_factors = growths[kind.growth].data_ptr()
            memory.append(self._schedule(step, kind, lens, contexts))
            steps[kind] = step
        self._set_workspace(steps)
        memory.append(self._workspace)
        return CpuPlan(
            token_ids=torch.from_numpy(batch.token_ids),
            positions=tokens,
            steps=[steps[kind] for kind in self._layers],
            angles=angles,
            lens=lens.tolist(),
            memory=memory,
        )

    def _angles(self, rope: RopeSpec, positions: torch.Tensor) -> Angles:
        # In float32 for every dtype, as the models were trained.
        angles = torch.outer(positions.float(), rope.inv_freq.cpu())
        return Angles(*((each * rope.scaling).to(self._wide) for each in (angles.cos(), angles.sin())))

    def _schedule(
        self, step: StepArguments, kind: LayerKind, lens: NDArray[np.int64], contexts: NDArray[np.int64]
    ) -> Sequence[NDArray[np.int64]]:
        items, merges, step.num_partials = self._library.schedule(
            lens, contexts, num_heads=kind.num_heads, num_kv_heads=kind.num_kv_heads,
            block_size=self._block_size, window=kind.window or 0, num_threads=step.num_threads,
        )  # fmt: skip
        step.items, step.num_items = _address(items), len(items)
        step.merges, step.num_merges = _address(merges), len(merges)
        return items, merges

    def _set_workspace(self, steps: dict[LayerKind, StepArguments]) -> None:
        """Give all steps the workspace, which grows if one of them needs more."""
        needed = max(
            self._kernels.workspace_bytes(byref(self._kinds[kind]), byref(step))
            for kind, step in steps.items()
        )
        if len(self._workspace) < needed + 64:
            self._workspace = np.empty(needed * 5 // 4 + 64, dtype=np.uint8)
        for step in steps.values():
            step.workspace = -(-_address(self._workspace) // 64) * 64


def _address(array: NDArray[Any]) -> int:
    address: int = array.ctypes.data
    return address
