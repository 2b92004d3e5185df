"""Publisher: everything that the last steps produced goes to the server in one call.

It owns the jobs between the engine and their end. The engine's thread only queues notes here; one thread
turns them into STEPs (protocol line 6), reads the replies, and ends what is to be ended.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from pagefleet.api.contract.errors import FleetError, JobFailed, ProtocolError, RedisUnavailable, StorageFull
from pagefleet.api.contract.messages import ErrorInfo, JobState
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import StepItem, StepReply, StepStatus
from pagefleet.engine import FinishReason, SequenceOutput
from pagefleet.engine.execution.step_tracer import NO_TRACER, StepTracer
from pagefleet.workers.job.active_job import ActiveJob
from pagefleet.workers.observe.metrics import Metrics
from pagefleet.workers.threads.loop_thread import LoopThread
from pagefleet.workers.threads.outage_retry import OutageRetry

logger = logging.getLogger(__name__)

_MAX_ITEMS: Final = 128
_MAX_TOKENS_A_CALL: Final = 8192
_CHARS_A_TOKEN: Final = 16
_QUIET_S: Final = 0.25
"""A job that produced nothing for so long is asked after: was it cancelled, is its deadline past?"""


class Publisher:
    """Sends jobs' tokens, learns of cancels, deadlines and fences, and hands ended jobs on.

    Args:
        abort: takes a job out of the engine.
        on_ended: told of each job that reached a final state and must be closed.
        on_lost: told of each job that another worker has, or that the server forgot, and why.
        on_released: told of each job that was given back; its message must follow.
        on_unreadable: told of each job whose hash or log the server could not read.
    """

    def __init__(
        self,
        store: JobStore,
        worker_id: str,
        retry: OutageRetry,
        metrics: Metrics,
        *,
        abort: Callable[[str], None],
        on_ended: Callable[[ActiveJob], None],
        on_lost: Callable[[ActiveJob, str], None],
        on_released: Callable[[ActiveJob], None],
        on_unreadable: Callable[[ActiveJob], None],
        tracer: StepTracer = NO_TRACER,
    ) -> None:
        self._store = store
        self._tracer = tracer
        self._worker_id = worker_id
        self._retry = retry
        self._metrics = metrics
        self._abort = abort
        self._on_ended = on_ended
        self._on_lost = on_lost
        self._on_released = on_released
        self._on_unreadable = on_unreadable
        self._jobs: dict[str, ActiveJob] = {}
        self._dirty: dict[str, ActiveJob] = {}
        self._notes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_full = False
        self._unsent_since: float | None = None
        self._stopping = False
        self._thread = LoopThread("publisher", self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Flushes what is queued, gives back every job that is still held, and ends the thread."""
        self._notes.put(self._stop)
        self._thread.join()

    def take(self, job: ActiveJob) -> None:
        """From now on this job's outputs may come; its client is told that it was accepted."""
        # At once, not by note: the engine's thread looks a job up here before its first prefill.
        self._jobs[job.request_id] = job
        self._notes.put(lambda: self._touch(job))

    def publish(self, outputs: Sequence[SequenceOutput]) -> None:
        now = time.monotonic()
        self._notes.put(lambda: self._add_outputs(outputs, now))

    def ask(self, request_ids: Sequence[str]) -> None:
        """After jobs that a step computed without a token: a cancel does not wait for a prefill's end."""
        self._notes.put(lambda: self._ask(request_ids))

    def fail(self, job: ActiveJob, error: FleetError) -> None:
        """FAIL (protocol line 8)."""
        self._notes.put(lambda: self._end(job, JobState.FAILED, "error", error))

    def fail_ids(self, request_ids: Sequence[str], error: FleetError) -> None:
        """FAIL, for attempts that were taken."""
        self._notes.put(lambda: self._fail_ids(request_ids, error))

    def give_back(self, job: ActiveJob) -> None:
        """RELEASE (protocol line 8) of one job: its log is flushed, its message goes to the front."""
        self._notes.put(lambda: self._give_back(job))

    def release(self, job: ActiveJob) -> None:
        """RELEASE of one that never came to the engine; its message is the caller's to return."""
        self._notes.put(lambda: self._release(job))

    def is_in_engine(self, job: ActiveJob) -> bool:
        """Not before its grammar is compiled, and not after its end."""
        return self._jobs.get(job.request_id) is job

    def mark(self, request_ids: Sequence[str]) -> set[str]:
        """MARK (protocol line 5), after everything that was published before it; the caller waits.

        A job that got its first token in the last step must not stand beside the next one as a suspect.

        Returns:
            The attempts that must not be computed.

        Raises:
            RedisUnavailable: the worker is leaving, and the server is away.
        """
        jobs = [job for each in request_ids if (job := self._jobs.get(each)) is not None]
        # Of two attempts of one job the later one counts.
        latest = {job.job_id: job for job in sorted(jobs, key=lambda job: job.serial)}
        epochs = {job_id: job.epoch for job_id, job in latest.items()}
        lost = set(request_ids) - {job.request_id for job in latest.values()}

        def mark() -> None:
            self._flush()
            fenced = self._retry(lambda: self._store.mark(self._worker_id, epochs))
            lost.update(latest[job_id].request_id for job_id in fenced)

        self._wait_for(mark)
        return lost

    def abandon(self, request_ids: Sequence[str]) -> None:
        """MARK these as suspects and leave them as a death would: nothing is sent for them any more. The
        caller waits. Raise RedisUnavailable as `mark` does."""
        self.mark(request_ids)
        jobs = [job for each in request_ids if (job := self._jobs.get(each)) is not None]

        def forget() -> None:
            for job in jobs:
                self._forget(job)

        self._wait_for(forget)

    def _wait_for(self, do: Callable[[], object]) -> None:
        """Do something in the publisher's thread, after what was published before."""
        is_done = threading.Event()

        def note() -> None:
            do()
            is_done.set()

        self._notes.put(note)
        while not is_done.wait(_QUIET_S):
            if not self._thread.is_alive():
                raise RedisUnavailable("The publisher left before the server answered.")

    def _run(self) -> None:
        while not self._stopping:
            self._take_notes()
            self._flush()
        self._release_held()

    def _flush(self) -> None:
        """Sends what is dirty. A server at its memory limit takes no tokens: they wait here, and the thread
        goes on with marks and ends, which it does take; the engine would lose its lease over a mark."""
        waiting = dict(self._dirty)
        self._is_full = False
        try:
            for batch in self._batches():
                items = [item for _, item in batch]
                step = functools.partial(self._store.step, self._worker_id, items)
                with self._tracer.span("publish", num_items=len(items)):
                    replies = self._retry(step, reraise=StorageFull)
                for (job, item), reply in zip(batch, replies, strict=True):
                    self._on_reply(job, item, reply)
            self._note_latency()
        except StorageFull:
            self._is_full = True
            held = {name: job for name, job in waiting.items() if self._jobs.get(name) is job}
            self._dirty |= {name: job for name, job in held.items() if job.has_unsent}

    def _note_latency(self) -> None:
        """From the oldest step whose tokens were waiting to the server's reply."""
        if self._unsent_since is not None:
            self._metrics.on_published(time.monotonic() - self._unsent_since)
            self._unsent_since = None

    def _take_notes(self) -> None:
        try:
            is_idle = self._is_full or not self._dirty
            note = self._notes.get(timeout=_QUIET_S) if is_idle else self._notes.get_nowait()
            while True:
                note()
                note = self._notes.get_nowait()
        except queue.Empty:
            pass
        now = time.monotonic()
        quiet = [job for job in list(self._jobs.values()) if now - job.last_sent_at > _QUIET_S]
        self._dirty |= {job.request_id: job for job in quiet}

    def _batches(self) -> Iterator[list[tuple[ActiveJob, StepItem]]]:
        """The dirty jobs' items, a bounded number to a call: a script blocks the server while it runs."""
        jobs, self._dirty = list(self._dirty.values()), {}
        batch: list[tuple[ActiveJob, StepItem]] = []
        num_tokens = 0
        for job in jobs:
            job.last_sent_at = time.monotonic()
            for item in job.next_items():
                batch.append((job, item))
                num_tokens += _size(item)
                if len(batch) >= _MAX_ITEMS or num_tokens >= _MAX_TOKENS_A_CALL:
                    yield batch
                    batch, num_tokens = [], 0
        if batch:
            yield batch

    def _on_reply(self, job: ActiveJob, item: StepItem, reply: StepReply) -> None:
        if self._jobs.get(job.request_id) is not job:
            return
        choice = job.choices[item.choice]
        if not 0 <= reply.num_tokens <= len(choice.token_ids):
            # Nobody but this attempt appends: the hash counts what never was.
            self._condemn(job)
            return
        job.accepted_sent = True
        choice.num_sent = reply.num_tokens
        match reply.status:
            case StepStatus.OK:
                if item.entry is not None and item.entry.finish_reason is not None:
                    choice.has_ended = True
                    if job.has_ended:
                        self._hand_on(job)
            case StepStatus.BEHIND:
                self._dirty[job.request_id] = job
            case StepStatus.CANCEL:
                self._end(job, JobState.CANCELLED, "cancelled", None)
            case StepStatus.DEADLINE:
                self._end(job, JobState.FAILED, "deadline", None)
            case StepStatus.UNREADABLE:
                self._condemn(job)
            case StepStatus.FENCED | StepStatus.GONE:
                self._lose(job, reply.status)

    def _touch(self, job: ActiveJob) -> None:
        self._dirty[job.request_id] = job

    def _ask(self, request_ids: Sequence[str]) -> None:
        self._dirty |= {each: job for each in request_ids if (job := self._jobs.get(each)) is not None}

    def _add_outputs(self, outputs: Sequence[SequenceOutput], stepped_at: float) -> None:
        if self._unsent_since is None:
            self._unsent_since = stepped_at
        for output in outputs:
            job = self._jobs.get(output.request_id)
            if job is None:
                continue
            has_failed = output.finish_reason is FinishReason.ERROR
            job.add_output(replace(output, finish_reason=None) if has_failed else output)
            self._dirty[job.request_id] = job
            if has_failed:
                # What came before is told first.
                self._flush()
                if self._jobs.get(job.request_id) is job:
                    self._end(job, JobState.FAILED, "error", JobFailed(str(output.stop_reason)))

    def _fail_ids(self, request_ids: Sequence[str], error: FleetError) -> None:
        for request_id in request_ids:
            if request_id in self._jobs:
                self._end(self._jobs[request_id], JobState.FAILED, "error", error)

    def _end(self, job: ActiveJob, state: JobState, reason: str, error: FleetError | None) -> None:
        """END or FAIL by the owner: the engine lets go of the job, then the server hears of it."""
        self._abort(job.request_id)
        info = None if error is None else ErrorInfo.from_error(error)
        try:
            verdict = self._retry(
                lambda: self._store.end(
                    job.job_id, self._worker_id, job.epoch, state, reason=reason, error=info
                )
            )
        except ProtocolError:
            self._condemn(job)
            return
        if verdict == "ended":
            self._hand_on(job)
        else:
            self._lose(job, verdict)

    def _give_back(self, job: ActiveJob) -> None:
        if self._jobs.get(job.request_id) is not job:
            return
        self._abort(job.request_id)
        self._flush()
        if self._jobs.get(job.request_id) is not job:
            return
        try:
            verdict = self._retry(
                functools.partial(self._store.release, job.job_id, self._worker_id, job.epoch)
            )
        except ProtocolError:
            self._condemn(job)
            return
        if verdict == "released":
            self._forget(job)
            self._on_released(job)
        else:
            self._lose(job, verdict)

    def _hand_on(self, job: ActiveJob) -> None:
        self._forget(job)
        self._on_ended(job)

    def _lose(self, job: ActiveJob, why: str) -> None:
        self._metrics.on_fenced(why)
        self._abort(job.request_id)
        self._forget(job)
        self._on_lost(job, why)

    def _condemn(self, job: ActiveJob) -> None:
        self._abort(job.request_id)
        self._forget(job)
        self._on_unreadable(job)

    def _forget(self, job: ActiveJob) -> None:
        self._jobs.pop(job.request_id, None)
        self._dirty.pop(job.request_id, None)

    def _release_held(self) -> None:
        """RELEASE (protocol line 8): tokens first, then the job; any worker may go on with it."""
        self._flush()
        for job in list(self._jobs.values()):
            self._release(job)
            self._forget(job)

    def _release(self, job: ActiveJob) -> None:
        with contextlib.suppress(ProtocolError):
            self._retry(functools.partial(self._store.release, job.job_id, self._worker_id, job.epoch))

    def _stop(self) -> None:
        self._stopping = True


def _size(item: StepItem) -> int:
    """In tokens, or what weighs as much: a logprob, a part of an echoed prompt."""
    entry = item.entry
    if entry is None:
        return 0
    logprobs = [*(entry.logprobs or ()), *(entry.prompt_logprobs or ())]
    num_chars = sum(map(len, entry.texts))
    num_ids = len(entry.token_ids) + len(entry.prompt_token_ids or ())
    return num_ids + sum(1 + len(each.top) for each in logprobs) + num_chars // _CHARS_A_TOKEN
