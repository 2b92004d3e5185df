"""OverlappedExecutor: computes an executor's steps in a thread, while the engine prepares the next one."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from pagefleet.engine.execution.executor import Executor, Pending, StepResult
from pagefleet.engine.execution.step_input import StepInput
from pagefleet.engine.execution.step_tracer import StepTracer

__all__ = ["OverlappedExecutor", "StepCancelledError"]


class StepCancelledError(Exception):
    """A step was not computed, because the step before it failed."""


class OverlappedExecutor(Executor):
    """Runs another executor in a thread of its own, one step after the other.

    Tokens that a step needs from the step before are filled in between the two. If a step fails, those that
    were submitted before its result was taken are cancelled.
    """

    is_asynchronous = True
    prefers_overlap = True

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pagefleet-executor")
        self._last: _Submitted | None = None

    @property
    def tracer(self) -> StepTracer:
        return self._executor.tracer

    @tracer.setter
    def tracer(self, tracer: StepTracer) -> None:
        self._executor.tracer = tracer

    def submit(self, step: StepInput) -> Pending:
        """See `Executor.submit`."""
        before = self._last if self._last is not None and not self._last.is_taken else None
        step.keep_blocks()
        future = self._thread.submit(self._run, step, before)
        self._last = _Submitted(future)
        return self._last

    def execute(self, step: StepInput) -> StepResult:
        """See `Executor.execute`."""
        return self.submit(step).result()

    def has_lost_device(self, error: Exception) -> bool:
        """See `Executor.has_lost_device`."""
        return self._executor.has_lost_device(error)

    def sleep(self) -> None:
        """See `Executor.sleep`."""
        self._executor.sleep()

    def wake(self) -> None:
        """See `Executor.wake`."""
        self._executor.wake()

    def close(self) -> None:
        """See `Executor.close`."""
        self._thread.shutdown()
        self._executor.close()

    def _run(self, step: StepInput, before: _Submitted | None) -> StepResult:
        if before is not None:
            error = before.future.exception()
            if error is not None:
                raise StepCancelledError from error
            step.carry(before.future.result().token_ids)
        return self._executor.execute(step)


class _Submitted(Pending):
    def __init__(self, future: Future[StepResult]) -> None:
        self.future = future
        self.is_taken = False

    def result(self) -> StepResult:
        try:
            return self.future.result()
        finally:
            self.is_taken = True
