"""ModelRunner: the executor with a model in it. From scheduled sequences to a ragged batch to tokens.

Knows no requests, no stops and no text. Host work is vectorised: no Python loop runs over tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.backends.base import Backend, RaggedBatch
from pagefleet.engine.executor import Executor
from pagefleet.engine.models.decoder import Decoder
from pagefleet.engine.sampler import Sampler, SamplingRow
from pagefleet.engine.scheduler import ScheduledSequence


class ModelRunner(Executor):
    """Runs a decoder whose backend has its KV cache allocated."""

    def __init__(self, model: Decoder, backend: Backend[Any, Any]) -> None:
        self._model = model
        self._backend = backend
        self._sampler = Sampler()

    @torch.inference_mode()
    def execute(self, scheduled: list[ScheduledSequence]) -> list[int | None]:
        """See `Executor.execute`."""
        batch = ragged_batch(scheduled)
        sampling = [
            index
            for index, (sequence, num_new_tokens) in enumerate(scheduled)
            if sequence.num_computed_tokens + num_new_tokens == sequence.num_tokens
        ]
        logits = self._forward(batch, np.array(sampling, dtype=np.int64))
        token_ids: list[int | None] = [None] * len(scheduled)
        if sampling:
            rows = [_sampling_row(scheduled[index]) for index in sampling]
            for index, token_id in zip(sampling, self._sampler.sample(logits, rows), strict=True):
                token_ids[index] = token_id
        return token_ids

    @torch.inference_mode()
    def warm_up(self, query_lens: list[int]) -> None:
        """Computes one step of sequences of these lengths, all in block 0, which nobody owns yet.

        Kernels are chosen and memory is touched here rather than in a request's first step.
        """
        lens = np.array(query_lens, dtype=np.int64)
        tokens, blocks = int(lens.sum()), np.zeros((len(lens), int(lens.max())), dtype=np.int64)
        batch = RaggedBatch(np.zeros(tokens, dtype=np.int64), lens, np.zeros_like(lens), blocks)
        self._forward(batch, np.arange(len(lens)))

    def close(self) -> None:
        """Drops model and cache; their memory goes back once the caller holds neither."""
        del self._model, self._backend

    def _forward(self, batch: RaggedBatch, sampling: NDArray[np.int64]) -> torch.Tensor:
        """Logits [len(sampling), vocab] of the last token of those sequences."""
        plan = self._backend.begin_step(batch)
        last_rows = np.cumsum(batch.query_lens)[sampling] - 1
        return self._model.forward(plan, torch.from_numpy(last_rows).to(self._backend.device))


def ragged_batch(scheduled: list[ScheduledSequence]) -> RaggedBatch:
    """The scheduled tokens end to end, and each sequence's blocks."""
    token_ids: list[int] = []
    for sequence, num_new_tokens in scheduled:
        start = sequence.num_computed_tokens
        token_ids += sequence.token_ids[start : start + num_new_tokens]
    tables = [sequence.block_table for sequence, _ in scheduled]
    block_tables = np.zeros((len(tables), max(map(len, tables))), dtype=np.int64)
    for row, table in zip(block_tables, tables, strict=True):
        row[: len(table)] = table
    return RaggedBatch(
        token_ids=np.array(token_ids, dtype=np.int64),
        query_lens=np.array([num_new_tokens for _, num_new_tokens in scheduled], dtype=np.int64),
        context_lens=np.array([sequence.num_computed_tokens for sequence, _ in scheduled], dtype=np.int64),
        block_tables=block_tables,
    )


def _sampling_row(entry: ScheduledSequence) -> SamplingRow:
    sequence = entry.sequence
    return SamplingRow(sequence.sampling_params, sequence.seed, sequence.choice, sequence.num_output_tokens)
