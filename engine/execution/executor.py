"""Executor: the interface between scheduling (lists and counts) and computing (tensors and a device).

Does not know torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from pagefleet.engine.core.scheduler_output import ScheduledSequence
from pagefleet.engine.execution.step_tracer import NO_TRACER, StepTracer
from pagefleet.engine.model_info import ModelInfo
from pagefleet.engine.outputs import Sampled
from pagefleet.engine.text.tokenizer import Tokenizer

__all__ = ["Executor", "LoadedModel", "Report"]

Report = Callable[[str, float], None]
"""Called after each stage of loading with its name and its seconds."""


class Executor(ABC):
    """Computes the steps of an engine; owns the weights and the KV cache."""

    tracer: StepTracer = NO_TRACER
    """Records the stages of a step; set by the engine."""

    @abstractmethod
    def execute(self, scheduled: list[ScheduledSequence]) -> list[Sampled]:
        """Compute one step and sample. Changes no sequence.

        For each entry, writes the K/V of the tokens from `num_computed_tokens` to `num_computed_tokens +
        num_new_tokens - 1`, including drafts, to the blocks of the sequence. Returns one `Sampled` per
        entry, in the same order: the accepted drafts and one more token, or no tokens if the entry is not
        sampled.

        The result of an entry does not depend on the others. A token id outside the vocabulary means that the
        entry's logits are not numbers, or that its grammar or parameters could not be applied: the engine
        ends this sequence and continues with the others. An exception fails the whole step; the step, or
        parts of it, can be computed again.
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
