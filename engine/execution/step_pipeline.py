"""StepPipeline: the steps in flight, from their start to their tokens."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pagefleet.engine.core.scheduler import Scheduler
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.core.step_budget import StepBudget, StepCost
from pagefleet.engine.errors import EngineFailedError
from pagefleet.engine.execution.executor import Executor, Pending, StepResult
from pagefleet.engine.execution.step_input import StepInputs
from pagefleet.engine.outputs import FinishReason, TokenLogprobs
from pagefleet.engine.requests.output_processor import StepTokens
from pagefleet.engine.requests.stop_checker import StopChecker

__all__ = ["StepClock", "StepPipeline"]


class StepClock:
    """Adapts the scheduler's token budget to the time that steps take."""

    def __init__(self, scheduler: Scheduler, budget: StepBudget, cost: StepCost) -> None:
        self._scheduler, self._budget, self._cost = scheduler, budget, cost
        self._last_taken_at = 0.0

    def observe(self, step: SchedulerOutput, submitted_at: float) -> None:
        """Record that a step has ended now."""
        now = time.monotonic()
        cost = len(step)
        for index in np.flatnonzero(step.num_new_tokens > 1).tolist():
            num_new_tokens, num_computed = int(step.num_new_tokens[index]), int(step.num_computed[index])
            cost += self._cost.of(num_new_tokens, num_computed) - 1
        # A step that was submitted while another step was computed began when that step ended.
        self._budget.observe(cost, now - max(submitted_at, self._last_taken_at))
        self._last_taken_at = now
        self._scheduler.token_budget = self._budget.num_tokens


class _InFlight(NamedTuple):
    """A step that was submitted and not taken."""

    step: SchedulerOutput
    pending: Pending
    submitted_at: float


class _Failed(Pending):
    """A step that could not be submitted."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def result(self) -> StepResult:
        raise self._error


class StepPipeline:
    """Submits the steps of one scheduler to an executor, and takes their results in the same order.

    Args:
        max_in_flight: 2 if the next step is submitted before the tokens of this one are taken, else 1.
        on_end: called for a sequence that ends with a token.
    """

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        stop_checker: StopChecker,
        clock: StepClock,
        *,
        max_in_flight: int,
        on_end: Callable[[Sequence, FinishReason], None],
    ) -> None:
        self._executor, self._scheduler, self._stop_checker = executor, scheduler, stop_checker
        self._clock = clock
        self._max_in_flight = max_in_flight
        self._on_end = on_end
        self._step_inputs = StepInputs(scheduler.table)
        self._in_flight: deque[_InFlight] = deque()
        self.num_steps = 0
        self.last_num_seqs = 0
        """Sequences that got a token in the last step."""

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def is_full(self) -> bool:
        """Whether a step must be taken before the next one is submitted."""
        return len(self._in_flight) >= self._max_in_flight

    @property
    def oldest_step(self) -> SchedulerOutput | None:
        """The step that `take` waits for; None without one."""
        return self._in_flight[0].step if self._in_flight else None

    def submit(self, step: SchedulerOutput) -> None:
        """Start to compute a step, without the sequences that ended since it was scheduled."""
        is_alive = step.is_alive
        if not is_alive.all():
            step = step.select(np.flatnonzero(is_alive))
        if not len(step):
            return
        submitted_at = time.monotonic()
        pending: Pending
        try:
            with self._executor.tracer.span("prepare"):
                step_input = self._step_inputs.make(step)
            pending = self._executor.submit(step_input)
        except Exception as error:  # noqa: BLE001
            # It fails when it is taken, like a step that cannot be computed.
            pending = _Failed(error)
        self._scheduler.bookings.book(step)
        self._in_flight.append(_InFlight(step, pending, submitted_at))

    def take(self) -> StepTokens:
        """Wait for the oldest step and return its tokens. See `LLMEngine.take`."""
        step, pending, submitted_at = self._in_flight[0]
        with self._executor.tracer.step(step):
            try:
                result = pending.result()
            except BaseException:
                self._in_flight.popleft()
                self.forget()
                self._scheduler.bookings.unbook(step)
                raise
            self._in_flight.popleft()
            self._clock.observe(step, submitted_at)
            with self._executor.tracer.span("commit"):
                tokens = self._commit(step, result)
        self.num_steps += 1
        self.last_num_seqs = len(tokens)
        return tokens

    def forget(self) -> None:
        """Wait for the steps in flight and take their bookings back: their tokens are computed again."""
        for each in self._in_flight:
            with contextlib.suppress(Exception):
                each.pending.result()
        while self._in_flight:
            self._scheduler.bookings.unbook(self._in_flight.pop().step)

    def _commit(self, step: SchedulerOutput, result: StepResult) -> StepTokens:
        """Append the tokens of a step to their sequences, and end those that end with them."""
        try:
            for index, logprobs in result.prompt_logprobs.items():
                _store_prompt_logprobs(step.sequences[index], int(step.num_computed[index]), logprobs)
            found = self._scheduler.bookings.commit(step, result.token_ids)
            ends = self._stop_checker.find_ends(step, found)
            tokens = StepTokens.of(step, found, ends, result.logprobs)
            for index, end in tokens.ends.items():
                self._on_end(tokens.sequences[index], end.finish_reason)
        except Exception as error:
            raise EngineFailedError(
                f"The results of a step could not be processed: {error!r}",
                [sequence.request_id for sequence in step.sequences],
            ) from error
        return tokens


def _store_prompt_logprobs(sequence: Sequence, num_computed: int, found: tuple[TokenLogprobs, ...]) -> None:
    """Store the prompt logprobs of a step that began after `num_computed` tokens.

    After a preemption the prompt is computed again from its start, and its logprobs are stored again.
    """
    if sequence.prompt_logprobs is not None and found:
        sequence.prompt_logprobs[num_computed:] = found
