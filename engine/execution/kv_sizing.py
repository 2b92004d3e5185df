"""How many blocks the KV cache gets: as many as a limit allows, or as memory has to spare beside a step."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import torch

from pagefleet.engine.config import EngineConfig
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.execution.model_runner import ModelRunner

logger = logging.getLogger(__name__)

_MOST_UNTIMED: Final = 512
"""Tokens of a step if neither their number nor its time is limited."""
CPU_MEMORY_SHARE = 0.25
"""Of the memory that is available: a CPU is shared with other processes."""
DEVICE_MEMORY_SHARE = 0.85
"""Of the memory that is free: an accelerator is taken as the worker's own."""


def num_kv_blocks(runner: ModelRunner, config: EngineConfig, max_model_len: int, spare: int) -> int:
    """As configured; else what fits the memory, but no more than `max_num_seqs` full contexts can use.

    Args:
        spare: bytes that weights and the largest step leave of the memory.

    Raises ModelLoadError where that is less than a block.
    """
    if config.num_blocks is not None:
        return config.num_blocks
    bytes_per_block = runner.kv_bytes_per_block(config.block_size)
    if config.kv_memory_bytes is not None:
        num_blocks = config.kv_memory_bytes // bytes_per_block
    else:
        share = DEVICE_MEMORY_SHARE if runner.device.type == "cuda" else CPU_MEMORY_SHARE
        most = config.max_num_seqs * -(-max_model_len // config.block_size)
        num_blocks = min(int(spare * share) // bytes_per_block, most)
    if num_blocks < 1:
        raise ModelLoadError(
            f"One block of the KV cache takes {bytes_per_block:,} bytes, and there is less; "
            "free memory or set kv_memory_bytes."
        )
    return num_blocks


class WarmUp(NamedTuple):
    """What the first steps have shown."""

    spare: int
    """Bytes that are free beside the weights and a step at its peak."""
    max_num_batched_tokens: int
    """The largest step that was computed."""
    token_s: float
    """Seconds that a token took in it."""


def warm_up(runner: ModelRunner, config: EngineConfig, max_model_len: int) -> WarmUp:
    """Compute the largest steps, and others.

    Kernels are chosen and memory is touched here rather than in a request's first step.
    """
    free = _free_memory(runner.device)
    # Every token goes to the same block: what is computed means nothing.
    runner.allocate_kv_cache(1, config.block_size)
    shown = [(0, 0.0)]
    step = peak_memory(runner.device, lambda: shown.append(_compute_shapes(runner, config, max_model_len)))
    logger.info("%d MiB of memory are free, %d of them for a step", free >> 20, step >> 20)
    return WarmUp(max(0, free - step), *shown[-1])


def _compute_shapes(runner: ModelRunner, config: EngineConfig, max_model_len: int) -> tuple[int, float]:
    """The shapes that matter: one sequence, a full batch, a short prompt, a full budget of prompt. Return the
    last one's tokens, and seconds for each of them."""
    most = config.max_num_batched_tokens or _MOST_UNTIMED
    runner.warm_up([1])
    runner.warm_up([1] * min(config.max_num_seqs, most))
    runner.warm_up([min(config.block_size, most)])
    runner.warm_up([most])
    token_s = _seconds(runner, most) / most
    if config.max_num_batched_tokens is None and config.max_step_s is not None:
        # A machine that is busy now may be twice as quick later.
        most = int(min(max_model_len, max(most, 2 * config.max_step_s / token_s)))
        _seconds(runner, most)
    return most, token_s


def _seconds(runner: ModelRunner, num_tokens: int) -> float:
    begun_at = time.perf_counter()
    runner.warm_up([num_tokens])
    return time.perf_counter() - begun_at


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def peak_memory(device: torch.device, compute: Callable[[], object]) -> int:
    """Bytes that `compute` took at its peak, beyond what was there before.

    On a CPU by the kernel's own mark of the process's largest resident size; what the allocator had kept from
    earlier work and uses again does not count, as it is not in the free memory either.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        compute()
        return int(torch.cuda.max_memory_allocated(device)) - before
    _forget_peak()
    before = psutil.Process().memory_info().rss
    compute()
    return max(0, _peak_resident() - before)


def _forget_peak() -> None:
    """Linux sets the mark back to what is resident now; elsewhere it only ever rises."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        try:
            path.write_text("5")
        except OSError as error:
            logger.debug("the peak of the memory cannot be set back: %s", error)


def _peak_resident() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
