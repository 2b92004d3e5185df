"""The thread that owns the engine: takes jobs in, steps, hands outputs on. It does no I/O of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from pagefleet.engine import EngineRequest, InvalidRequestError, LLMEngine, SequenceOutput
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.errors import EngineFailedError
from pagefleet.engine.fault_isolation import FaultIsolation
from pagefleet.workers.attempt.solo_gate import SoloGate
from pagefleet.workers.threads.loop_thread import LoopThread

logger = logging.getLogger(__name__)

_IDLE_S: Final = 0.1


class Listener(Protocol):
    """Who hears of what the engine did; called from the engine's thread."""

    def before_prefill(self, request_ids: Sequence[str]) -> set[str]:
        """MARK (protocol line 5), before these requests' first prefill. Returns those to be dropped."""

    def on_outputs(self, outputs: Sequence[SequenceOutput]) -> None: ...

    def on_silent(self, request_ids: Sequence[str]) -> None:
        """A step computed these and gave them no token: a part of a long prompt."""

    def on_refused(self, request_id: str, error: InvalidRequestError) -> None: ...

    def on_failed(self, request_id: str, error: Exception) -> None:
        """This request alone cannot be computed."""

    def on_engine_failed(self, suspect_ids: Sequence[str], error: EngineFailedError) -> None:
        """The engine computes nothing any more, and the loop ends. No request is to blame for sure; the
        suspects were in its last step."""


class Meter(Protocol):
    """Who counts; called from the engine's thread, which must not wait for it."""

    def on_step(self, begun_at: float, plan: SchedulerOutput, outputs: Sequence[SequenceOutput]) -> None:
        """A step has ended.

        Args:
            begun_at: when it was scheduled, on the monotonic clock.
        """


class Beat(Protocol):
    """The lease, as the loop sees it."""

    @property
    def valid(self) -> bool: ...

    def tick(self) -> None: ...


class BatchStats(NamedTuple):
    """Over the steps in which at least one sequence received a token."""

    num_steps: int = 0
    num_tokens: int = 0
    max_size: int = 0
    last_size: int = 0


class EngineLoop:
    """Runs an engine in a thread of its own.

    Args:
        lease: without it the loop does not step: another worker may have its jobs by then.
    """

    def __init__(self, engine: LLMEngine, listener: Listener, lease: Beat, meter: Meter) -> None:
        self._engine = engine
        self._steps = FaultIsolation(engine)
        self._listener = listener
        self._lease = lease
        self._meter = meter
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._starts = SoloGate(self._admit)
        self._stopping = False
        self._thread = LoopThread("engine", self._run)
        self.batch = BatchStats()

    def start(self) -> None:
        self._thread.start()

    def add(self, request: EngineRequest, *, solo: bool = False) -> None:
        """From any thread; a refusal comes through the listener.

        Args:
            solo: no other request begins its prefill before this one has a token.
        """
        self._commands.put(lambda: self._starts.put(request, solo))

    def abort(self, request_id: str) -> None:
        """From any thread; no output of the request comes after the loop's current step."""
        self._commands.put(lambda: self._abort(request_id))

    def wedge(self) -> None:
        """For tests: the engine's thread never ends its next turn. From any thread, or a signal handler."""
        self._commands.put(_never_end)

    def stop(self) -> None:
        """Ends the loop after its current step and waits for it."""
        self._commands.put(self._stop)
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            busy = self._engine.has_unfinished_requests and self._lease.valid
            self._take_commands(wait_s=0.0 if busy else _IDLE_S)
            self._lease.tick()
            if self._engine.has_unfinished_requests and self._lease.valid and not self._stopping:
                self._step()

    def _take_commands(self, wait_s: float) -> None:
        try:
            command = self._commands.get(timeout=wait_s) if wait_s else self._commands.get_nowait()
            while True:
                command()
                command = self._commands.get_nowait()
        except queue.Empty:
            return

    def _step(self) -> None:
        begun_at = time.monotonic()
        plan = self._steps.schedule()
        # A request's other choices begin after its first one, which has shown that the prompt is harmless.
        first = dict.fromkeys(sequence.request_id for sequence in plan.first_prefills)
        request_ids = [each for each in first if self._starts.is_beginning(each)]
        if request_ids:
            for request_id in self._listener.before_prefill(request_ids):
                self._abort(request_id)
        try:
            outputs = self._steps.execute(plan)
        except EngineFailedError as error:
            self._stopping = True
            self._listener.on_engine_failed(self._starts.suspects(error.request_ids), error)
            return
        self._count(outputs)
        self._meter.on_step(begun_at, plan, outputs)
        for output in outputs:
            self._starts.passed(output.request_id)
            if output.finish_reason is not None:
                self._starts.ended(output.request_id)
        if outputs:
            self._listener.on_outputs(outputs)
        heard = {output.request_id for output in outputs}
        silent = [each for entry in plan.scheduled if (each := entry.sequence.request_id) not in heard]
        if silent:
            self._listener.on_silent(silent)

    def _count(self, outputs: Sequence[SequenceOutput]) -> None:
        size = sum(1 for output in outputs if output.token_ids)
        if size:
            batch = self.batch
            num_tokens = batch.num_tokens + sum(len(output.token_ids) for output in outputs)
            self.batch = BatchStats(batch.num_steps + 1, num_tokens, max(batch.max_size, size), size)

    def _admit(self, request: EngineRequest) -> bool:
        try:
            self._engine.add_request(request)
        except InvalidRequestError as error:
            self._listener.on_refused(request.request_id, error)
            return False
        except Exception as error:
            # A tokenizer or a grammar is not ours: what it throws at one request must not end the others'.
            logger.exception("request %s could not be added", request.request_id)
            self._listener.on_failed(request.request_id, error)
            return False
        return True

    def _abort(self, request_id: str) -> None:
        self._engine.abort(request_id)
        self._starts.passed(request_id)
        self._starts.ended(request_id)

    def _stop(self) -> None:
        self._stopping = True


def _never_end() -> None:
    threading.Event().wait()


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = 0.01) -> bool:
    """Polls a condition that another thread makes true; false when the time is up first."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(poll_s)
    return True
