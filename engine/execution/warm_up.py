"""Warm-up of a model: computes the largest steps once, and measures their memory and speed."""

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
from pagefleet.engine.execution.model_runner import ModelRunner

__all__ = ["WarmUp", "peak_memory", "warm_up"]

logger = logging.getLogger(__name__)

_DEFAULT_NUM_BATCHED_TOKENS: Final = 512
"""Tokens of a step if neither their number nor the time is limited."""


class WarmUp(NamedTuple):
    """The measurements of a warm-up."""

    spare: int
    """Bytes of memory that the weights and the largest step at its peak leave free."""
    max_num_batched_tokens: int
    """The tokens of the largest step that was computed."""
    token_s: float
    """Seconds per token of a full step."""


def warm_up(runner: ModelRunner, config: EngineConfig, max_model_len: int) -> WarmUp:
    """Compute steps of typical and largest shapes; return their measurements.

    So kernels are selected and memory is allocated now rather than in the first step of a request.
    """
    free = _free_memory(runner.device)
    # All tokens are written to the same block: the results are not used.
    runner.allocate_kv_cache([1] * len(runner.spec.kv_windows), config.block_size)
    measured = [(0, 0.0)]
    step = peak_memory(runner.device, lambda: measured.append(_compute_steps(runner, config, max_model_len)))
    logger.info("%d MiB of memory are free; the largest step needs %d of them", free >> 20, step >> 20)
    return WarmUp(max(0, free - step), *measured[-1])


def _compute_steps(runner: ModelRunner, config: EngineConfig, max_model_len: int) -> tuple[int, float]:
    """Compute one sequence, a full batch, a short prompt and prompts of the whole budget; return the tokens
    of the largest step and the seconds per token."""
    num_tokens = config.max_num_batched_tokens or _DEFAULT_NUM_BATCHED_TOKENS
    runner.warm_up([1])
    runner.warm_up([1] * min(config.max_num_seqs, num_tokens))
    runner.warm_up([min(config.block_size, num_tokens, max_model_len)])
    largest = _full_step(num_tokens, max_model_len)
    runner.warm_up(largest)
    token_s = _seconds(runner, largest) / num_tokens
    if config.max_num_batched_tokens is None and config.max_step_s is not None:
        # Twice what the time limit allows: a machine that is busy now may be faster later.
        num_tokens = int(min(max_model_len, max(num_tokens, 2 * config.max_step_s / token_s)))
        runner.warm_up([num_tokens])
    return num_tokens, token_s


def _full_step(num_tokens: int, max_model_len: int) -> list[int]:
    """Return the lengths of the fewest sequences that have `num_tokens` tokens.

    None exceeds the context: a table of position embeddings ends there.
    """
    num_full, rest = divmod(num_tokens, max_model_len)
    return [max_model_len] * num_full + [rest] * (rest > 0)


def _seconds(runner: ModelRunner, query_lens: list[int]) -> float:
    begun_at = time.perf_counter()
    runner.warm_up(query_lens)
    return time.perf_counter() - begun_at


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def peak_memory(device: torch.device, compute: Callable[[], object]) -> int:
    """Return the bytes that `compute` used at its peak, in addition to those in use before.

    On a CPU this is the kernel's high-water mark of the resident set size. Memory that the allocator kept
    from earlier work and uses again does not count, because it is not part of the free memory either.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        compute()
        return int(torch.cuda.max_memory_allocated(device)) - before
    _reset_peak()
    before = psutil.Process().memory_info().rss
    compute()
    return max(0, _peak_resident() - before)


def _reset_peak() -> None:
    """Reset the high-water mark to the current resident size. Only Linux can; elsewhere the mark only
    rises."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        try:
            path.write_text("5")
        except OSError as error:
            logger.debug("the peak of the memory use cannot be reset: %s", error)


def _peak_resident() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
