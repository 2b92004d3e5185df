"""The number of KV cache blocks that fit the memory."""

from __future__ import annotations

from typing import Final

from pagefleet.engine.config import EngineConfig
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.execution.model_runner import ModelRunner

__all__ = ["num_kv_blocks"]

CPU_MEMORY_SHARE: Final = 0.25
"""The share of the available memory that the KV cache gets on a CPU, which other processes use too."""
DEVICE_MEMORY_SHARE: Final = 0.85
"""The share of the free memory that the KV cache gets on an accelerator, which only this worker uses."""


def num_kv_blocks(runner: ModelRunner, config: EngineConfig, max_model_len: int, spare: int) -> int:
    """Return `config.num_blocks`, or as many blocks as fit the memory and `max_num_seqs` full contexts can
    use.

    Args:
        spare: bytes of memory that the weights and the largest step leave free.

    Raises ModelLoadError if not even one block fits.
    """
    if config.num_blocks is not None:
        return config.num_blocks
    bytes_per_block = runner.kv_bytes_per_block(config.block_size)
    if config.kv_memory_bytes is not None:
        num_bytes = config.kv_memory_bytes
        num_blocks = num_bytes // bytes_per_block
    else:
        share = DEVICE_MEMORY_SHARE if runner.device.type == "cuda" else CPU_MEMORY_SHARE
        num_usable = config.max_num_seqs * -(-max_model_len // config.block_size)
        num_bytes = int(spare * share)
        num_blocks = min(num_bytes // bytes_per_block, num_usable)
    if num_blocks < 1:
        raise ModelLoadError(
            f"One block of the KV cache needs {bytes_per_block:,} bytes, but only {num_bytes:,} are "
            "available: "
            "raise kv_memory_bytes, or free memory."
        )
    return num_blocks
