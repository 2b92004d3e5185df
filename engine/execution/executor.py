"""The seam between the scheduler's world (lists and counts) and the model's (tensors and a device).

Nothing here knows torch: an executor is whatever can compute the tokens of a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from pagefleet.engine.core.scheduler_output import ScheduledSequence
from pagefleet.engine.execution.step_tracer import NO_TRACER, StepTracer
from pagefleet.engine.model_info import Fingerprint, ModelInfo
from pagefleet.engine.outputs import Sampled
from pagefleet.engine.text.tokenizer import Tokenizer

__all__ = ["Executor", "Fingerprint", "LoadedModel", "ModelInfo", "Report"]

Report = Callable[[str, float], None]
"""Told of each stage of loading: its name and the seconds it took."""


class Executor(ABC):
    """Computes steps. Owns the weights and the KV cache; knows nothing of requests, stops or text."""

    tracer: StepTracer = NO_TRACER
    """Told of the stages of a step; the engine sets it."""

    @abstractmethod
    def execute(self, scheduled: list[ScheduledSequence]) -> list[Sampled]:
        """Compute one step and sample.

        For each entry, writes the K/V of tokens `num_computed_tokens` .. `num_computed_tokens +
        num_new_tokens - 1`, the drafts among them, into the sequence's `block_table`, and returns, in the
        same order, what follows where that reaches `num_tokens`, and an empty `Sampled` elsewhere: as many
        drafts as come true, and one token more. Changes no sequence.

        The result of an entry doesn't depend on the others. An id outside of the vocabulary says that this
        entry's logits were of no use (NaN), or that its grammar or parameters could not be applied: the
        engine ends that sequence and goes on with the rest.
        An exception fails the step as a whole; the step, or parts of it, can then be tried again.
        """

    def has_lost_device(self, error: Exception) -> bool:
        """Return whether `execute` will fail from now on, whatever the batch, because it raised `error`."""
        return False

    @abstractmethod
    def sleep(self) -> None:
        """Give the memory of weights and KV cache back; what the cache held is lost."""

    @abstractmethod
    def wake(self) -> None:
        """Load the weights again, beside an empty KV cache of the same size. Only after `sleep`."""

    @abstractmethod
    def close(self) -> None:
        """Give the memory back. The executor can't be used any more."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready: loaded, warmed up, its KV cache allocated."""

    executor: Executor
    tokenizer: Tokenizer
    info: ModelInfo
    max_num_batched_tokens: int = 512
    """The largest step that memory was measured for."""
    token_s: float | None = None
    """Seconds that a token took in a full step, measured at warm-up."""
    context_weight: float = 0.0
    """What each token before it adds to the cost of a token, as a share of the token's own."""
