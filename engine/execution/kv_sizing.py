"""The number of KV cache blocks that fit the memory, for each KV group."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pagefleet.engine.config import EngineConfig
from pagefleet.engine.core.block_pool import num_required_blocks
from pagefleet.engine.core.ngram_index import num_index_bytes
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.model_info import KVGroup

if TYPE_CHECKING:
    from pagefleet.engine.execution.model_runner import ModelRunner
    from pagefleet.engine.execution.warm_up import WarmUp

__all__ = ["fitting_kv_groups", "kv_groups"]

CPU_MEMORY_SHARE: Final = 0.25
"""The share of the available memory that the KV cache gets on a CPU, which other processes use too."""
DEVICE_MEMORY_SHARE: Final = 0.85
"""The share of the free memory that the KV cache gets on an accelerator, which only this worker uses."""


def kv_groups(
    windows: Sequence[int | None],
    num_blocks: int,
    config: EngineConfig,
    max_model_len: int,
    max_num_tokens: int,
) -> tuple[KVGroup, ...]:
    """Return groups with these windows, of which the first has `num_blocks` blocks.

    Another group with a window has at most twice the blocks that all running sequences can use: the second
    half keeps prefixes. So it does not run out before the first group.

    Args:
        max_num_tokens: tokens of the largest step.
    """
    first, *others = windows
    groups = [KVGroup(first, num_blocks)]
    for window in others:
        num_usable = num_blocks
        if window is not None:
            # One more for each sequence, which the scheduler keeps free.
            num_held = num_required_blocks(max_model_len, window, config.block_size) + 1
            num_usable = config.max_num_seqs * num_held + -(-max_num_tokens // config.block_size)
        groups.append(KVGroup(window, min(num_blocks, 2 * num_usable)))
    return tuple(groups)


def fitting_kv_groups(
    runner: ModelRunner, config: EngineConfig, max_model_len: int, warmed: WarmUp
) -> tuple[KVGroup, ...]:
    """Return groups of which the first has `config.num_blocks` blocks, or as many as fit the memory and
    `max_num_seqs` full contexts can use.

    On a CPU, the KV cache leaves room for the n-grams of as many sequences if there are speculative tokens.

    Raises ModelLoadError if not even one block of each group fits.
    """
    bytes_per_block = runner.kv_bytes_per_block(config.block_size)

    def groups(num_blocks: int) -> tuple[KVGroup, ...]:
        windows, max_num_tokens = runner.spec.kv_windows, warmed.max_num_batched_tokens
        return kv_groups(windows, num_blocks, config, max_model_len, max_num_tokens)

    def num_bytes(num_blocks: int) -> int:
        pairs = zip(groups(num_blocks), bytes_per_block, strict=True)
        return sum(group.num_blocks * each for group, each in pairs)

    if config.num_blocks is not None:
        return groups(config.num_blocks)
    if config.kv_memory_bytes is not None:
        num_available = config.kv_memory_bytes
        num_usable = num_available // max(1, bytes_per_block[0])
    else:
        share = DEVICE_MEMORY_SHARE if runner.device.type == "cuda" else CPU_MEMORY_SHARE
        num_usable = config.max_num_seqs * -(-max_model_len // config.block_size)
        num_available = int(warmed.spare * share)
        if runner.device.type == "cpu" and config.num_speculative_tokens:
            num_available = max(0, num_available - config.max_num_seqs * num_index_bytes(max_model_len))
    num_blocks = bisect_right(range(1, num_usable + 1), num_available, key=num_bytes)
    if num_blocks < 1:
        raise ModelLoadError(
            f"One block of the KV cache needs {sum(bytes_per_block):,} bytes, but only {num_available:,} are "
            "available: raise kv_memory_bytes, or free memory."
        )
    return groups(num_blocks)
