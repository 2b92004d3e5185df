"""ModelRunner: the executor that runs a model: from a step's arrays to logits and sampled tokens.

Does not know requests, stop conditions or text. Work on the host is vectorised: no Python loop runs over
tokens.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.backends.base import RaggedBatch
from pagefleet.engine.execution.executor import Executor, StepResult
from pagefleet.engine.execution.logprobs import token_logprobs
from pagefleet.engine.execution.prompt_rows import PromptRows
from pagefleet.engine.execution.step_input import Guests, StepInput
from pagefleet.engine.execution.token_masks import TokenMasks
from pagefleet.engine.model_spec import ModelSpec
from pagefleet.engine.models.model import Model
from pagefleet.engine.models.model_source import ModelSource
from pagefleet.engine.outputs import TokenLogprobs
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

    @property
    def prefers_overlap(self) -> bool:  # type: ignore[override]
        """A CPU's cores are needed for the step itself (ops/decisions/0034)."""
        return self.device.type != "cpu"

    @torch.inference_mode()
    def execute(self, step: StepInput) -> StepResult:
        """See `Executor.execute`."""
        guests = step.guests
        # Computed in parallel with the forward pass.
        masks = self._masks.start(guests.grammar_rows) if guests.grammar_rows else None
        try:
            hidden = self._hidden(step)
        except BaseException:
            if masks is not None:
                # Wait for the masks: the next step uses the same grammars.
                with contextlib.suppress(Exception):
                    masks()
            raise
        num_rows = len(step.batch)
        result = StepResult(np.empty(0, dtype=np.int64))
        if num_rows:
            with self.tracer.span("sample", num_rows=num_rows):
                logits = self._model.logits(hidden[:num_rows])
                batch = replace(step.batch, rules=guests.rules) if guests.rules else step.batch
                token_ids = self._token_ids(logits, batch, masks() if masks is not None else None)
                result = StepResult(token_ids, self._logprobs(logits, token_ids, guests))
        if guests.prompts.rows:
            with self.tracer.span("prompt_logprobs", num_rows=len(guests.prompts.rows)):
                found = self._prompt_logprobs(hidden[num_rows:], guests.prompts)
                result = result._replace(prompt_logprobs=found)
        return result

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

    def _hidden(self, step: StepInput) -> torch.Tensor:
        """Compute the layers; return the hidden states of the sampled rows, then of those for prompt
        logprobs."""
        with self.tracer.span("prepare"):
            blocks = step.block_tables(self._block_size).astype(np.int64)
            token_ids = step.token_ids
            if step.carried is not None:
                # The step before samples `vocab_size` for a sequence that it cannot sample.
                token_ids = np.where(token_ids < self.spec.vocab_size, token_ids, 0)
            batch = RaggedBatch(token_ids, step.query_lens, step.context_lens, blocks)
            rows = step.rows.logit_rows
            if step.guests.prompts.rows:
                rows = np.append(rows, np.array(step.guests.prompts.rows, dtype=np.int64))
        with self.tracer.span("forward"):
            return self._forward(batch, rows)

    def _forward(self, batch: RaggedBatch, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the hidden states of these rows of the batch, for `Model.logits`: [len(rows), hidden]."""
        plan = self._model.backend.begin_step(batch)
        return self._model.forward(plan, torch.from_numpy(rows).to(self.device))

    def _logprobs(
        self, logits: torch.Tensor, token_ids: NDArray[np.int64], guests: Guests
    ) -> dict[int, TokenLogprobs]:
        asking = [row for row in guests.num_logprobs if token_ids[row] < logits.shape[-1]]
        if not asking:
            return {}
        num_top = [guests.num_logprobs[row] for row in asking]
        return dict(
            zip(asking, token_logprobs(logits[asking], token_ids[asking].tolist(), num_top), strict=True)
        )

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

    def _prompt_logprobs(
        self, hidden: torch.Tensor, prompts: PromptRows
    ) -> dict[int, tuple[TokenLogprobs, ...]]:
        logprobs: list[TokenLogprobs] = []
        # A few rows at a time: the logits of a whole long prompt would need gigabytes.
        for start in range(0, len(prompts.rows), NUM_PROMPT_ROWS):
            some = slice(start, start + NUM_PROMPT_ROWS)
            logits = self._model.logits(hidden[some])
            logprobs += token_logprobs(logits, prompts.token_ids[some], prompts.num_top[some])
        found, start = {}, 0
        for index, length in prompts.lengths.items():
            found[index] = tuple(logprobs[start : start + length])
            start += length
        return found
