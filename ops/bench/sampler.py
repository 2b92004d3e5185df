"""The CPU time of the sampler for one step, by the number of rows, the vocabulary and the parameters.

`python -m ops.bench.sampler` prints milliseconds: the minimum of many steps, in one thread, so that other
work on the machine changes little. The logits of a row are float32, those of a power law, steeper or
flatter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
import torch

from pagefleet.engine.execution.verification import sampled_rows
from pagefleet.engine.sampling.reference_sampler import ReferenceSampler
from pagefleet.engine.sampling.sampling_batch import SamplingBatch
from pagefleet.engine.sampling.sampling_params import SamplingParams

VOCAB_SIZES: Final = (49_152, 151_936)
NUM_ROWS: Final = (1, 8, 64, 256)
FILTERS: Final[list[dict[str, Any]]] = [
    {},
    {"top_k": 20},
    {"top_p": 0.8},
    {"min_p": 0.03},
    {"top_k": 50, "top_p": 0.95, "min_p": 0.01},
    {"typical_p": 0.7},
    {"top_p": 0.98, "typical_p": 0.95},
    {"top_k": 5},
]
KINDS: Final[dict[str, list[dict[str, Any]]]] = {
    "greedy": [{"temperature": 0.0}],
    "temperature": [{"temperature": 0.8}],
    "top_p": [{"temperature": 0.8, "top_p": 0.95}],
    "top_k": [{"temperature": 0.8, "top_k": 50}],
    "typical_p": [{"typical_p": 0.9}],
    "mixed": FILTERS,
}


def logits_of(num_rows: int, vocab_size: int) -> torch.Tensor:
    """Return float32 [num_rows, vocab_size]: the probability of the n-th token is proportional to n**-a, with
    another a and another order for each row."""
    rng = np.random.default_rng(0)
    ranked = -np.log(np.arange(1, vocab_size + 1, dtype=np.float32))
    rows = [rng.permutation(ranked) * np.float32(rng.uniform(1.3, 2.5)) for _ in range(num_rows)]
    return torch.from_numpy(np.stack(rows))


def batch_of(params: list[dict[str, Any]], num_rows: int) -> SamplingBatch:
    batch = SamplingBatch.empty(num_rows)
    for row in range(num_rows):
        batch.write(row, SamplingParams(**params[row % len(params)]), seed=row)
    return batch


def cpu_ms(compute: Callable[[], object], seconds: float = 0.5) -> float:
    """Return the milliseconds of CPU time that one call needs, as the minimum of many."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.thread_time()
        compute()
        best = min(best, time.thread_time() - begun)
    return 1000 * best


def main() -> None:
    torch.set_num_threads(1)
    print("host, 256 rows:", *(f"{name} {cpu_ms(call):.3f}," for name, call in host_parts(256)), "ms")
    for vocab_size in VOCAB_SIZES:
        print(f"vocabulary {vocab_size:,}:", *(f"{kind:>12}" for kind in KINDS))
        logits = logits_of(max(NUM_ROWS), vocab_size)
        for num_rows in NUM_ROWS:
            sampler, figures = ReferenceSampler(), []
            for params in KINDS.values():
                batch = batch_of(params, num_rows)
                figures.append(cpu_ms(partial(sampler.sample, logits[:num_rows], batch)))
            print(f"{num_rows:>12} rows   ", *(f"{figure:>12.2f}" for figure in figures), flush=True)


def host_parts(num_rows: int) -> list[tuple[str, Callable[[], object]]]:
    """Return the work that does not depend on the vocabulary."""
    table = batch_of(FILTERS, num_rows)
    index, ones = np.arange(num_rows), np.ones(num_rows, dtype=np.int64)
    is_sampled = ones.astype(np.bool_)
    return [
        ("rows to sample", lambda: sampled_rows(ones, ones - 1, is_sampled)),
        ("batch of a table", lambda: replace(table.take(index), position=index)),
        ("random numbers", table.uniforms),
    ]


if __name__ == "__main__":
    main()
