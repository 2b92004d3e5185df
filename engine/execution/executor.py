"""Executor: the interface between scheduling (numbers) and computing (tensors and a device).

Does not know torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.execution.step_tracer import NO_TRACER, StepTracer
from pagefleet.engine.model_info import ModelInfo
from pagefleet.engine.outputs import TokenLogprobs
from pagefleet.engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pagefleet.engine.execution.step_input import StepInput

__all__ = ["Executor", "LoadedModel", "Pending", "Report", "StepResult"]

Report = Callable[[str, float], None]
"""Called after each stage of loading with its name and its seconds."""


class StepResult(NamedTuple):
    """What a step found: R sampled rows (see StepInput)."""

    token_ids: NDArray[np.int64]
    """[R]: the token sampled for each row. One outside of the vocabulary means that the row's logits are not
    numbers, or that its grammar or parameters could not be applied: the engine ends this sequence only."""
    logprobs: Mapping[int, TokenLogprobs] = {}
    """Those of the rows that ask for them, by row."""
    prompt_logprobs: Mapping[int, tuple[TokenLogprobs, ...]] = {}
    """Those of the prompt tokens that follow the tokens of this step, by index of the sequence."""


class Pending(ABC):
    """A step that was submitted."""

    @abstractmethod
    def result(self) -> StepResult:
        """Wait for the step and return its result, or raise why it failed. To be called once."""


class Executor(ABC):
    """Computes the steps of an engine, in the order in which they are submitted; owns the weights and the KV
    cache."""

    tracer: StepTracer = NO_TRACER
    """Records the stages of a step; set by the engine."""
    is_asynchronous: bool = False
    """Whether `submit` returns before the step is computed."""
    prefers_overlap: bool = False
    """Whether the next step should be scheduled while this one is computed."""

    def submit(self, step: StepInput) -> Pending:
        """Start to compute a step, which may begin before the previous step is finished.

        An executor that is not asynchronous computes it when its result is needed.
        """
        return _Deferred(self, step)

    @abstractmethod
    def execute(self, step: StepInput) -> StepResult:
        """Compute one step and sample. Changes no sequence.

        For each sequence, writes the K/V of its tokens from `context_lens` on, drafts included, to its
        blocks. The result of a sequence does not depend on the others. An exception fails the whole step; the
        step, or parts of it, can be computed again.
        """

    def has_lost_device(self, error: Exception) -> bool:
        """Return whether `error`, which `execute` raised, means that every later step will fail too."""
        return False

    @abstractmethod
    def sleep(self) -> None:
        """Free the memory of the weights and the KV cache; the contents of the cache are lost."""

    @abstractmethod
    def wake(self) -> None:
        """Load the weights again and allocate an empty KV cache of the same size. To be called after
        `sleep`."""

    @abstractmethod
    def close(self) -> None:
        """Free the memory. The executor cannot be used any more."""


class _Deferred(Pending):
    """A step that is computed when its result is needed."""

    def __init__(self, executor: Executor, step: StepInput) -> None:
        self._executor, self._step = executor, step

    def result(self) -> StepResult:
        return self._executor.execute(self._step)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready for an engine: loaded, warmed up, with its KV cache allocated."""

    executor: Executor
    tokenizer: Tokenizer
    info: ModelInfo
    max_num_batched_tokens: int = 512
    """The largest step, in tokens, that memory was measured for."""
    token_s: float | None = None
    """Seconds per token of a full step, measured during warm-up; None if not measured."""
    context_weight: float = 0.0
    """The cost that each token of context adds to a token, relative to a token without context (StepCost)."""
