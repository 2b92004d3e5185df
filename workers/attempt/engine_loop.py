"""EngineLoop: the thread that owns the engine. It adds jobs, runs steps and passes the outputs on; it does
no I/O."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from pagefleet.engine import InvalidRequestError, LLMEngine, PreparedRequest
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.errors import EngineFailedError
from pagefleet.engine.fault_isolation import FaultIsolation
from pagefleet.engine.requests.output_processor import StepTokens
from pagefleet.workers.attempt.prefill_gate import PrefillGate, has_begun
from pagefleet.workers.threads.loop_thread import LoopThread

logger = logging.getLogger(__name__)

_IDLE_S: Final = 0.1
_MARK_S: Final = 0.005
"""How long a step waits at most for the marks of its new requests. A Redis nearby needs about 1 ms. If most
of the last marks took longer than this, steps do not wait."""
_MARK_WEIGHT: Final = 0.1
_MIN_SHARE_FAST: Final = 0.5


class EngineListener(Protocol):
    """Receives the engine's events. All methods are called in the engine's thread."""

    def before_prefill(self, request_ids: Sequence[str]) -> None:
        """The next step could begin these requests. MARK them (protocol line 5) without waiting here: each is
        computed after `EngineLoop.confirm`."""

    def on_tokens(self, tokens: StepTokens) -> None:
        """A step has found these tokens. Another thread turns them into text, in parallel with the next
        step."""

    def on_no_token(self, request_ids: Sequence[str]) -> None:
        """A step computed a part of these requests' prompts, without a token."""

    def on_request_rejected(self, request_id: str, error: InvalidRequestError) -> None: ...

    def on_request_failed(self, request_id: str, error: Exception) -> None:
        """Only this request cannot be computed."""

    def on_engine_failed(self, suspect_ids: Sequence[str], error: EngineFailedError) -> None:
        """The engine cannot compute any more, and the loop ends. The suspects are requests of its last step;
        which of them caused the failure is not known."""


class StepMetrics(Protocol):
    """Counts steps. Called in the engine's thread, so it must not block."""

    def on_step(self, started_at: float, step: SchedulerOutput) -> None:
        """A step has ended.

        Args:
            started_at: when the step was scheduled, on the monotonic clock.
        """


class LeaseState(Protocol):
    """The part of the lease that the loop uses."""

    @property
    def valid(self) -> bool: ...

    def tick(self) -> None: ...


class BatchStats(NamedTuple):
    """Counts only steps in which at least one sequence received a token."""

    num_steps: int = 0
    num_tokens: int = 0
    max_size: int = 0
    last_size: int = 0


class EngineLoop:
    """Runs an engine in a separate thread.

    Args:
        lease: the loop does not step without a valid lease, because another worker may have its jobs by then.
    """

    def __init__(
        self, engine: LLMEngine, listener: EngineListener, lease: LeaseState, metrics: StepMetrics
    ) -> None:
        self._engine = engine
        engine.end_in(self._post_end)
        self._steps = FaultIsolation(engine)
        self._started_at: deque[float] = deque()
        self._listener = listener
        self._lease = lease
        self._metrics = metrics
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._gate = PrefillGate(self._admit)
        # Requests that the listener is marking, and since when.
        self._unmarked: dict[str, float] = {}
        # The share of the last marks that took at most `_MARK_S`.
        self._share_fast = 1.0
        self._is_blocked = False
        self._stopping = False
        self._thread = LoopThread("engine", self._run)
        self.batch = BatchStats()

    def start(self) -> None:
        self._thread.start()

    def add(self, request: PreparedRequest, *, solo: bool = False) -> None:
        """Add a request, from any thread. If the engine rejects it, the listener is called.

        Args:
            solo: no other request starts its prefill before this one has a token.
        """
        self._commands.put(lambda: self._gate.add(request, solo))

    def confirm(self, request_ids: Sequence[str]) -> None:
        """Let requests be computed, from any thread: they are marked."""
        confirmed_at = time.monotonic()
        self._commands.put(lambda: self._confirm(request_ids, confirmed_at))

    def abort(self, request_id: str) -> None:
        """Abort a request, from any thread. It has no output after the current step."""
        self._commands.put(lambda: self._abort(request_id))

    def wedge(self) -> None:
        """For tests: block the engine's thread forever. From any thread or a signal handler."""
        self._commands.put(_block_forever)

    def stop(self) -> None:
        """End the loop after its current step and wait for the thread."""
        self._commands.put(self._stop)
        self._thread.join()

    @property
    def awaits_marks(self) -> bool:
        """Whether a step waits for the marks of its new requests: most of the last ones were fast."""
        return self._share_fast >= _MIN_SHARE_FAST

    def _run(self) -> None:
        while not self._stopping:
            is_busy = self._may_step and not self._is_blocked
            self._run_commands(wait_s=0.0 if is_busy else _IDLE_S)
            self._lease.tick()
            if self._may_step and not self._stopping:
                self._step()

    @property
    def _may_step(self) -> bool:
        return self._engine.has_unfinished_requests and self._lease.valid

    def _run_commands(self, wait_s: float) -> None:
        try:
            command = self._commands.get(timeout=wait_s) if wait_s else self._commands.get_nowait()
            while True:
                command()
                command = self._commands.get_nowait()
        except queue.Empty:
            return

    def _step(self) -> None:
        started_at = time.monotonic()
        plan = self._steps.schedule()
        if (request_ids := self._mark(plan)) and len(plan) and self._await_marks(request_ids):
            # Requests that came meanwhile are marked before the next step: now it is too early.
            plan = self._steps.reschedule(plan)
        if len(plan):
            num_in_flight = self._engine.num_in_flight
            self._steps.submit(plan)
            # All of its sequences may have ended while it waited for marks.
            if self._engine.num_in_flight > num_in_flight:
                self._started_at.append(started_at)
            if not self._steps.must_take:
                return
        step = self._engine.oldest_step
        try:
            tokens = self._steps.take()
        except EngineFailedError as error:
            self._stopping = True
            self._listener.on_engine_failed(self._gate.suspects(error.request_ids), error)
            return
        # Only requests that wait for their mark are left: wait for the next command.
        self._is_blocked = step is None and not len(tokens)
        if step is not None:
            self._metrics.on_step(self._started_at.popleft(), step)
        if not self._engine.num_in_flight:
            # The steps behind one that failed are forgotten with it.
            self._started_at.clear()
        self._report(step, tokens)

    def _mark(self, plan: SchedulerOutput) -> list[str]:
        """Let the listener mark the requests that the step has room for, and return them.

        Not while others are being marked: they begin first, and the next ones would be suspects meanwhile."""
        waiting = dict.fromkeys(sequence.request_id for sequence in plan.unconfirmed)
        request_ids = [] if self._unmarked else list(waiting)
        if request_ids:
            self._unmarked |= dict.fromkeys(request_ids, time.monotonic())
            self._listener.before_prefill(request_ids)
        return request_ids

    def _await_marks(self, request_ids: Sequence[str]) -> bool:
        """Wait a moment for the marks, if most of the last ones were fast; return whether one came.

        A request that misses this step is a suspect for a whole step longer, and its first token comes a step
        later."""
        deadline = time.monotonic() + _MARK_S
        while self.awaits_marks and any(each in self._unmarked for each in request_ids):
            try:
                self._commands.get(timeout=max(0.0, deadline - time.monotonic()))()
            except queue.Empty:
                break
        return not all(each in self._unmarked for each in request_ids)

    def _confirm(self, request_ids: Sequence[str], confirmed_at: float) -> None:
        for request_id in request_ids:
            self._engine.confirm(request_id)
            asked_at = self._unmarked.pop(request_id, None)
            if asked_at is not None:
                is_fast = confirmed_at - asked_at <= _MARK_S
                self._share_fast += _MARK_WEIGHT * (is_fast - self._share_fast)

    def _report(self, step: SchedulerOutput | None, tokens: StepTokens) -> None:
        if len(tokens):
            self._gate_tokens(tokens)
            self._count(tokens)
            self._listener.on_tokens(tokens)
        if step is not None and len(tokens) < len(step):
            with_tokens = {sequence.request_id for sequence in tokens.sequences}
            without = [each.request_id for each in step.sequences if each.request_id not in with_tokens]
            if without:
                self._listener.on_no_token(without)

    def _gate_tokens(self, tokens: StepTokens) -> None:
        if self._gate.has_starting:
            for sequence in tokens.sequences:
                self._gate.on_started(sequence.request_id)
        for index in tokens.ends:
            request_id = tokens.sequences[index].request_id
            self._gate.on_started(request_id)
            self._gate.on_ended(request_id)

    def _count(self, tokens: StepTokens) -> None:
        size = len(tokens) if tokens.counts is None else sum(map(bool, tokens.counts))
        if size:
            batch = self.batch
            num_tokens = batch.num_tokens + len(tokens.token_ids)
            self.batch = BatchStats(batch.num_steps + 1, num_tokens, max(batch.max_size, size), size)

    def _post_end(self, request_id: str, end: Callable[[], None]) -> None:
        """A sequence ended because of its text, which the publisher's thread found."""

        def run() -> None:
            end()
            self._gate.on_ended(request_id)

        self._commands.put(run)

    def _admit(self, request: PreparedRequest) -> bool:
        try:
            self._engine.add_request(request, is_confirmed=has_begun(request))
        except InvalidRequestError as error:
            self._listener.on_request_rejected(request.request_id, error)
            return False
        except Exception as error:
            # An error in one request must not end the others.
            logger.exception("request %s could not be added to the engine", request.request_id)
            self._listener.on_request_failed(request.request_id, error)
            return False
        return True

    def _abort(self, request_id: str) -> None:
        self._engine.abort(request_id)
        self._unmarked.pop(request_id, None)
        self._gate.on_started(request_id)
        self._gate.on_ended(request_id)

    def _stop(self) -> None:
        self._stopping = True


def _block_forever() -> None:
    threading.Event().wait()
