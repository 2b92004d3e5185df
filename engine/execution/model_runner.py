"""ModelRunner: the executor that runs a model: scheduled sequences to a ragged batch, logits, sampled tokens.

Does not know requests, stop conditions or text. Work on the host is vectorised: no Python loop runs over
tokens.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.backends.base import RaggedBatch
from pagefleet.engine.core.scheduler_output import ScheduledSequence
from pagefleet.engine.execution.executor import Executor
from pagefleet.engine.execution.logprobs import PromptRows, prompt_rows, token_logprobs
from pagefleet.engine.execution.sampled_step import SampledStep, sampled_step
from pagefleet.engine.execution.token_masks import TokenMasks
from pagefleet.engine.execution.verification import valid_rows
from pagefleet.engine.model_spec import ModelSpec
from pagefleet.engine.models.model import Model
from pagefleet.engine.models.model_source import ModelSource
from pagefleet.engine.outputs import Sampled, TokenLogprobs
from pagefleet.engine.sampling.sampling_batch import GrammarMasks, SamplingBatch

logger = logging.getLogger(__name__)

NUM_PROMPT_ROWS = 64
"""Rows of prompts whose logits are computed at a time."""


class ModelRunner(Executor):
    """The executor that loads a decoder and runs it. Its KV cache must be allocated before the first step.

    Args:
        eos_token_ids: the tokens that may follow if a grammar is complete.

    Raises ModelLoadError.
    """

    def __init__(self, source: ModelSource, eos_token_ids: tuple[int, ...] = ()) -> None:
        self._source = source
        model = source.load()
        self._loaded: Model | None = model
        self._num_blocks: Sequence[int] = ()
        self._block_size = 0
        self.sampler = model.backend.sampler()
        self._masks = TokenMasks(self.spec.vocab_size, eos_token_ids)

    @property
    def device(self) -> torch.device:
        return self._source.device

    @property
    def backend_name(self) -> str:
        return self._model.backend.name

    @property
    def spec(self) -> ModelSpec:
        return self._model.spec

    def kv_bytes_per_block(self, block_size: int) -> list[int]:
        """Return the bytes of a block of `block_size` tokens, over all layers of each KV group."""
        return self._model.backend.kv_bytes_per_block(self.spec, block_size)

    @torch.inference_mode()
    def allocate_kv_cache(self, num_blocks: Sequence[int], block_size: int) -> None:
        """Allocate an empty KV cache, which replaces the previous one.

        Args:
            num_blocks: for each KV group.
        """
        self._num_blocks, self._block_size = num_blocks, block_size
        self._model.backend.allocate_kv_cache(self.spec, num_blocks, block_size)

    @torch.inference_mode()
    def execute(self, scheduled: list[ScheduledSequence]) -> list[Sampled]:
        """See `Executor.execute`."""
        with self.tracer.span("prepare"):
            batch = ragged_batch(scheduled)
            prompts = prompt_rows(scheduled)
        # Computed in parallel with the forward pass.
        step = sampled_step(scheduled)
        masks = self._masks.start(step.grammar_rows)
        try:
            with self.tracer.span("forward"):
                rows = np.append(step.rows.logit_rows, np.array(prompts.rows, dtype=np.int64))
                hidden = self._forward(batch, rows)
        except BaseException:
            if masks is not None:
                # Wait for the masks: the next step uses the same grammars.
                with contextlib.suppress(Exception):
                    masks()
            raise
        found = [Sampled()] * len(scheduled)
        num_rows = len(step.batch)
        if num_rows:
            with self.tracer.span("sample", num_rows=num_rows):
                allowed = masks() if masks is not None else None
                self._sample(found, hidden[:num_rows], step, allowed)
        if prompts.rows:
            with self.tracer.span("prompt_logprobs", num_rows=len(prompts.rows)):
                self._add_prompt_logprobs(found, hidden[num_rows:], prompts)
        return found

    def has_lost_device(self, error: Exception) -> bool:
        """See `Executor.has_lost_device`. A fatal error on a GPU makes its context unusable for the process;
        after any other error, such as out of memory, the device can still be synchronized."""
        if isinstance(error, torch.AcceleratorError):
            return True
        if self.device.type == "cpu":
            return False
        try:
            torch.accelerator.synchronize(self.device)
        except RuntimeError:
            return True
        return False

    @torch.inference_mode()
    def warm_up(self, query_lens: list[int]) -> None:
        """Compute one step of sequences with these lengths. All write to block 0, which is not in use yet."""
        lens = np.array(query_lens, dtype=np.int64)
        token_ids = np.zeros(int(lens.sum()), dtype=np.int64)
        blocks = np.zeros((len(self.spec.kv_windows), len(lens), int(lens.max())), dtype=np.int64)
        batch = RaggedBatch(token_ids, lens, np.zeros_like(lens), blocks)
        logits = self._model.logits(self._forward(batch, np.cumsum(lens) - 1))
        sampled = SamplingBatch.empty(len(lens))
        sampled.temperature[:] = 1
        self.sampler.sample(logits, sampled)

    def sleep(self) -> None:
        """See `Executor.sleep`."""
        self._loaded = None

    def wake(self) -> None:
        """See `Executor.wake`."""
        self._loaded = self._source.load()
        self.allocate_kv_cache(self._num_blocks, self._block_size)

    def close(self) -> None:
        """See `Executor.close`."""
        self._masks.close()
        self._loaded = None

    @property
    def _model(self) -> Model:
        assert self._loaded is not None, "closed or asleep"
        return self._loaded

    def _forward(self, batch: RaggedBatch, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the hidden states of these rows of the batch, for `Model.logits`: [len(rows), hidden]."""
        plan = self._model.backend.begin_step(batch)
        return self._model.forward(plan, torch.from_numpy(rows).to(self.device))

    def _sample(
        self, found: list[Sampled], hidden: torch.Tensor, step: SampledStep, masks: GrammarMasks | None
    ) -> None:
        """Add the next tokens and their logprobs to the entries' results."""
        logits = self._model.logits(hidden)
        token_ids = self._token_ids(logits, step.batch, masks)
        is_valid = valid_rows(step.rows, token_ids, step.draft_token_ids)
        asking = np.flatnonzero(is_valid & (step.num_logprobs >= 0) & (token_ids < logits.shape[-1]))
        logprobs: dict[int, TokenLogprobs] = {}
        if len(asking):
            num_top, chosen = step.num_logprobs[asking], token_ids[asking]
            rows = torch.from_numpy(asking).to(logits.device)
            made = token_logprobs(logits[rows], chosen.tolist(), num_top.tolist())
            logprobs = dict(zip(asking.tolist(), made, strict=True))
        valid = np.flatnonzero(is_valid).tolist()
        entries = step.rows.entries[is_valid].tolist()
        for row, entry, token_id in zip(valid, entries, token_ids[is_valid].tolist(), strict=True):
            before = found[entry]
            own = (logprobs[row],) if row in logprobs else ()
            found[entry] = Sampled((*before.token_ids, token_id), before.logprobs + own)

    def _token_ids(
        self, logits: torch.Tensor, batch: SamplingBatch, masks: GrammarMasks | None
    ) -> NDArray[np.int64]:
        """Return a token id per row; `vocab_size`, which is not a token, for a row that cannot be sampled."""
        try:
            return self.sampler.sample(logits, batch, masks)
        except Exception as error:
            if self.has_lost_device(error):
                raise
            if len(batch) > 1:
                # The logits are valid: sample row by row to find the one that fails.
                alone = []
                for row in np.arange(len(batch))[:, None]:
                    own = None if masks is None else masks.take(row)
                    alone.append(self._token_ids(logits[row[0] : row[0] + 1], batch.take(row), own))
                return np.concatenate(alone)
            logger.exception("a token of seed %d could not be sampled", batch.seed[0])
            return np.array([logits.shape[-1]])

    def _add_prompt_logprobs(self, found: list[Sampled], hidden: torch.Tensor, prompts: PromptRows) -> None:
        logprobs: list[TokenLogprobs] = []
        # A few rows at a time: the logits of a whole long prompt would need gigabytes.
        for start in range(0, len(prompts.rows), NUM_PROMPT_ROWS):
            some = slice(start, start + NUM_PROMPT_ROWS)
            logits = self._model.logits(hidden[some])
            logprobs += token_logprobs(logits, prompts.token_ids[some], prompts.num_top[some])
        start = 0
        for index, length in prompts.lengths.items():
            found[index] = found[index]._replace(prompt_logprobs=tuple(logprobs[start : start + length]))
            start += length


def ragged_batch(scheduled: list[ScheduledSequence]) -> RaggedBatch:
    """Return the tokens of a step laid end to end, with the blocks of each sequence in each KV group."""
    token_ids: list[int] = []
    for entry in scheduled:
        start = entry.sequence.num_computed_tokens
        token_ids += entry.sequence.token_ids[start : start + entry.num_new_tokens]
        token_ids += entry.draft_token_ids
    # For each group, the tables of all sequences.
    groups = list(zip(*(sequence.block_tables for sequence, _ in scheduled), strict=True))
    num_blocks = max(len(table.block_ids) for tables in groups for table in tables)
    block_tables = np.zeros((len(groups), len(scheduled), num_blocks), dtype=np.int64)
    for rows, tables in zip(block_tables, groups, strict=True):
        for row, table in zip(rows, tables, strict=True):
            first, block_ids = table.num_passed, table.block_ids
            # A slice of the list is a copy.
            row[first : len(block_ids)] = block_ids[first:] if first else block_ids
    return RaggedBatch(
        token_ids=np.array(token_ids, dtype=np.int64),
        query_lens=np.array([num_new_tokens for _, num_new_tokens in scheduled], dtype=np.int64),
        context_lens=np.array([sequence.num_computed_tokens for sequence, _ in scheduled], dtype=np.int64),
        block_tables=block_tables,
    )
