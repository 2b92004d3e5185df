"""Publisher: send the outputs of all jobs of the last steps to Redis in one call.

It owns the jobs from their admission to the engine until their end. Other threads queue commands here; one
thread turns them into STEPs (protocol line 6), reads the replies and ends jobs.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pagefleet.api.contract.errors import FleetError, JobFailed, RedisUnavailable, StorageFull
from pagefleet.api.contract.messages import JobState
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import StepReply, StepStatus
from pagefleet.engine import FinishReason
from pagefleet.engine.execution.step_tracer import NO_TRACER, StepTracer
from pagefleet.engine.outputs import StepOutput
from pagefleet.engine.requests.output_processor import StepTokens
from pagefleet.workers.attempt.attempt_endings import AttemptEndings
from pagefleet.workers.attempt.step_batches import UnsentBatch, step_batches
from pagefleet.workers.job.active_choice import ActiveChoice
from pagefleet.workers.job.active_job import ActiveJob
from pagefleet.workers.observe.metrics import Metrics
from pagefleet.workers.threads.loop_thread import LoopThread
from pagefleet.workers.threads.outage_retry import OutageRetry

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.25
"""A job without output for this long sends an empty STEP: the reply reports a cancel or a passed deadline."""


class Publisher:
    """Sends the jobs' tokens, and handles cancels, deadlines and lost ownership.

    Args:
        confirm: lets marked requests be computed by the engine.
        abort: aborts a request in the engine.
        endings: ends attempts that this publisher no longer sends for.
    """

    def __init__(
        self,
        store: JobStore,
        worker_id: str,
        retry: OutageRetry,
        metrics: Metrics,
        endings: AttemptEndings,
        *,
        process: Callable[[StepTokens], StepOutput],
        confirm: Callable[[Sequence[str]], None],
        abort: Callable[[str], None],
        tracer: StepTracer = NO_TRACER,
    ) -> None:
        self._store = store
        self._tracer = tracer
        self._worker_id = worker_id
        self._retry = retry
        self._metrics = metrics
        self._endings = endings
        self._process = process
        self._confirm = confirm
        self._abort = abort
        self._jobs: dict[str, ActiveJob] = {}
        self._unsent: dict[str, ActiveJob] = {}
        self._unmarked: list[str] = []
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._storage_full = False
        self._unsent_since: float | None = None
        self._look_at = 0.0
        """When to look next for jobs without output."""
        self._stopping = False
        self._thread = LoopThread("publisher", self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send what is queued, release all jobs and end the thread. The caller requeues the messages."""
        self._commands.put(self._stop)
        self._thread.join()

    def add(self, job: ActiveJob) -> None:
        """Accept a job before it is added to the engine; its client receives `accepted`."""
        # Not queued: `is_in_engine` must see the job at once.
        self._jobs[job.request_id] = job
        self._commands.put(lambda: self._queue_step([job.request_id]))

    def publish(self, tokens: StepTokens) -> None:
        """Turn the tokens of a step into text and send them."""
        now = time.monotonic()
        self._commands.put(lambda: self._add_tokens(tokens, now))

    def poll(self, request_ids: Sequence[str]) -> None:
        """Send a STEP for requests without output, so that a long prefill can be cancelled."""
        self._commands.put(lambda: self._queue_step(request_ids))

    def fail(self, job: ActiveJob, error: FleetError) -> None:
        """FAIL (protocol line 8)."""
        self._commands.put(lambda: self._end(job, JobState.FAILED, "error", error))

    def fail_request(self, request_id: str, error: FleetError) -> None:
        """FAIL, for a request that the engine knows."""
        self._commands.put(lambda: self._fail_request(request_id, error))

    def release(self, job: ActiveJob) -> None:
        """RELEASE a running job (protocol line 8): send its tokens, then requeue its message."""
        self._commands.put(lambda: self._release_running(job))

    def release_unprepared(self, job: ActiveJob) -> None:
        """RELEASE a job that was not added to the engine. The caller requeues its message."""
        self._commands.put(lambda: self._endings.release_at_shutdown(job))

    def is_in_engine(self, job: ActiveJob) -> bool:
        """False until the job's grammar is compiled, and after its end."""
        return self._jobs.get(job.request_id) is job

    def mark(self, request_ids: Sequence[str]) -> None:
        """MARK the requests as suspects (protocol line 5), then confirm them to the engine.

        First tokens that were published before are sent first: a job that had its first token in the last
        step must not be a suspect at the same time as a job of the next step.
        """
        self._commands.put(lambda: self._unmarked.extend(request_ids))

    def abandon(self, request_ids: Sequence[str]) -> None:
        """MARK the requests as suspects and send nothing for them any more, as if the worker had died.

        Waits for it.

        Raises:
            RedisUnavailable: the worker is shutting down and Redis does not answer.
        """

        def abandon() -> None:
            self._flush()
            self._mark(request_ids)
            for job in [job for each in request_ids if (job := self._jobs.get(each)) is not None]:
                self._remove(job)

        self._run_and_wait(abandon)

    def _run_and_wait(self, command: Callable[[], object]) -> None:
        """Run a command in the publisher's thread, after the commands queued before."""
        is_done = threading.Event()

        def run() -> None:
            command()
            is_done.set()

        self._commands.put(run)
        while not is_done.wait(_POLL_S):
            if not self._thread.is_alive():
                raise RedisUnavailable("The publisher stopped before Redis answered.")

    def _run(self) -> None:
        while not self._stopping:
            self._run_commands()
            self._mark_and_confirm()
            self._flush()
        self._release_all()

    def _run_commands(self) -> None:
        try:
            is_idle = self._storage_full or not self._unsent
            command = self._commands.get(timeout=_POLL_S) if is_idle else self._commands.get_nowait()
            while True:
                command()
                command = self._commands.get_nowait()
        except queue.Empty:
            pass
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _POLL_S / 2
            quiet = [job for job in list(self._jobs.values()) if now - job.last_sent_at > _POLL_S]
            self._unsent |= {job.request_id: job for job in quiet}

    def _flush(self) -> None:
        """Send all unsent tokens."""
        if not self._unsent:
            self._unsent_since = None
            return
        self._send_all(self._unsent)
        if not self._storage_full:
            self._observe_latency()

    def _send_all(self, jobs: Mapping[str, ActiveJob]) -> None:
        """Send what these jobs have not sent.

        A Redis at its memory limit rejects tokens, which stay unsent. It still accepts ends, so the thread
        does not wait for room.
        """
        self._unsent = {name: job for name, job in self._unsent.items() if name not in jobs}
        self._storage_full = False
        try:
            for batch in step_batches(jobs.values()):
                self._send(batch)
        except StorageFull:
            self._storage_full = True
            held = {name: job for name, job in jobs.items() if self._jobs.get(name) is job}
            self._unsent |= {name: job for name, job in held.items() if job.has_unsent}

    def _send(self, unsent: UnsentBatch) -> None:
        batch = unsent.batch
        with self._tracer.span("publish", num_items=len(batch)):
            replies = self._retry(lambda: self._store.step(self._worker_id, batch), reraise=StorageFull)
        now = time.monotonic()
        for (job, choice), reply in zip(unsent.choices, replies, strict=True):
            job.last_sent_at = now
            if self._jobs.get(job.request_id) is job:
                self._on_reply(job, choice, reply)

    def _observe_latency(self) -> None:
        """From the end of the oldest step with unsent tokens to Redis's reply."""
        if self._unsent_since is not None:
            self._metrics.on_published(time.monotonic() - self._unsent_since)
            self._unsent_since = None

    def _on_reply(self, job: ActiveJob, choice: ActiveChoice, reply: int | StepReply) -> None:
        num_tokens = reply if isinstance(reply, int) else reply.num_tokens
        if not 0 <= num_tokens <= len(choice.token_ids):
            # Only this attempt appends, so the count in the hash must be corrupt.
            self._remove(job)
            self._endings.give_up_unreadable(job)
            return
        job.accepted_sent = True
        choice.num_sent = num_tokens
        if not isinstance(reply, int):
            self._on_verdict(job, reply.status)
        elif choice.finish_reason is not None:
            choice.has_ended = True
            if job.has_ended:
                self._remove(job)
                self._endings.complete(job)

    def _on_verdict(self, job: ActiveJob, status: StepStatus) -> None:
        match status:
            case StepStatus.BEHIND:
                self._unsent[job.request_id] = job
            case StepStatus.CANCEL:
                self._end(job, JobState.CANCELLED, "cancelled", None)
            case StepStatus.DEADLINE:
                self._end(job, JobState.FAILED, "deadline", None)
            case StepStatus.UNREADABLE:
                self._remove(job)
                self._endings.give_up_unreadable(job)
            case StepStatus.FENCED | StepStatus.GONE:
                self._remove(job)
                self._endings.lose(job, status)

    def _mark_and_confirm(self) -> None:
        """Send first tokens, then MARK what is queued, in one call.

        Redis does not wait for the other tokens: the engine may wait for the mark. While Redis is at its
        memory limit, the jobs of unsent first tokens are still suspects, and nothing is marked.
        """
        if not self._unmarked:
            return
        if started := {name: job for name, job in self._unsent.items() if job.has_unsent_start}:
            self._send_all(started)
            if self._storage_full:
                return
        request_ids, self._unmarked = self._unmarked, []
        marked = self._mark(request_ids)
        for request_id in request_ids:
            if request_id not in marked:
                self._abort(request_id)
        self._confirm(marked)

    def _mark(self, request_ids: Sequence[str]) -> list[str]:
        """MARK and return the requests that may be computed."""
        jobs = [job for each in request_ids if (job := self._jobs.get(each)) is not None]
        # The engine may have two attempts at one job; only the later one is valid.
        latest = {job.job_id: job for job in sorted(jobs, key=lambda job: job.serial)}
        epochs = {job_id: job.epoch for job_id, job in latest.items()}
        fenced = self._retry(lambda: self._store.mark(self._worker_id, epochs))
        return [job.request_id for job_id, job in latest.items() if job_id not in fenced]

    def _queue_step(self, request_ids: Sequence[str]) -> None:
        self._unsent |= {each: job for each in request_ids if (job := self._jobs.get(each)) is not None}

    def _add_tokens(self, tokens: StepTokens, stepped_at: float) -> None:
        if self._unsent_since is None:
            self._unsent_since = stepped_at
        step = self._process(tokens)
        self._metrics.on_output(step, stepped_at)
        self._add_output(step)

    def _add_output(self, step: StepOutput) -> None:
        jobs, start = self._jobs, 0
        columns = zip(
            step.request_ids, step.choices, step.offsets, step.counts, step.num_cached_tokens, strict=True
        )
        for request_id, choice, offset, count, num_cached_tokens in columns:
            end = start + count
            if (job := jobs.get(request_id)) is not None:
                tokens = (step.token_ids[start:end], step.texts[start:end])
                job.add_tokens(choice, offset, *tokens, num_cached_tokens)
                self._unsent[request_id] = job
            start = end
        for index, logprobs in step.logprobs.items():
            if (job := jobs.get(step.request_ids[index])) is not None:
                job.add_logprobs(step.choices[index], logprobs)
        for index, logprobs in step.prompt_logprobs.items():
            if (job := jobs.get(step.request_ids[index])) is not None:
                job.set_prompt_logprobs(step.choices[index], logprobs)
        for index, (reason, stop_reason) in step.ends.items():
            self._add_end(step.request_ids[index], step.choices[index], reason, stop_reason)

    def _add_end(
        self, request_id: str, choice: int, reason: FinishReason, stop_reason: str | int | None
    ) -> None:
        if (job := self._jobs.get(request_id)) is None:
            return
        if reason is FinishReason.ERROR:
            # Send the tokens before the failure.
            self._flush()
            self._fail_request(request_id, JobFailed(str(stop_reason)))
        else:
            job.set_end(choice, reason, stop_reason)

    def _fail_request(self, request_id: str, error: FleetError) -> None:
        if request_id in self._jobs:
            self._end(self._jobs[request_id], JobState.FAILED, "error", error)

    def _end(self, job: ActiveJob, state: JobState, reason: str, error: FleetError | None) -> None:
        # Removed only after Redis has answered: until then BatchPreemption must see that the job is about to
        # make room, and must not release a second job for it.
        self._endings.end(job, state, reason, error)
        self._remove(job)

    def _release_running(self, job: ActiveJob) -> None:
        if self._jobs.get(job.request_id) is not job:
            return
        self._abort(job.request_id)
        self._flush()
        if self._jobs.get(job.request_id) is job:
            # Removed afterwards for the same reason as in _end.
            self._endings.release(job)
            self._remove(job)

    def _remove(self, job: ActiveJob) -> None:
        self._jobs.pop(job.request_id, None)
        self._unsent.pop(job.request_id, None)

    def _release_all(self) -> None:
        """RELEASE (protocol line 8) after the tokens are sent: any worker may continue the jobs."""
        self._flush()
        for job in list(self._jobs.values()):
            self._remove(job)
            self._endings.release_at_shutdown(job)

    def _stop(self) -> None:
        self._stopping = True
