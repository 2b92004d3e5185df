"""FleetWorker: the threads between a queue's messages and one engine, wired together.

message -> Admission -> EngineLoop -> Publisher -> Finisher -> message
              (claim)     (step)       (log, live)   (close)     (ack)
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from celery import Celery

from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.broker.status import num_queued
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import FleetError, JobFailed, ProtocolError, RedisUnavailable
from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.messages import WorkerStatus
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import CancelVerdict, StepStatus
from pagefleet.engine import EngineRequest, InvalidRequestError, LLMEngine, SequenceOutput
from pagefleet.engine.errors import EngineFailedError
from pagefleet.workers.attempt.admission import Admission, Holder
from pagefleet.workers.attempt.corrupt_jobs import CorruptJobHandler
from pagefleet.workers.attempt.engine_loop import EngineLoop
from pagefleet.workers.attempt.finisher import Ended, Finisher
from pagefleet.workers.attempt.message_rejector import MessageRejector
from pagefleet.workers.attempt.publisher import Publisher
from pagefleet.workers.job.active_job import ActiveJob, JobMessage
from pagefleet.workers.observe.inspect_stats import InspectStats
from pagefleet.workers.observe.job_log import job_fields, log_end
from pagefleet.workers.observe.live_metrics import LiveMetrics
from pagefleet.workers.observe.metrics import FOLD_INTERVAL_S, Metrics
from pagefleet.workers.prompting.model_card import make_card
from pagefleet.workers.prompting.prompt import fleet_error
from pagefleet.workers.prompting.tokenizer_service import TokenizerService
from pagefleet.workers.queue.canvas import Canvas
from pagefleet.workers.queue.capacity import Capacity
from pagefleet.workers.queue.lanes import BatchPreemption
from pagefleet.workers.queue.message_gate import MessageGate
from pagefleet.workers.queue.result_encoder import ResultEncoder
from pagefleet.workers.recovery.auditor import AUDIT_INTERVAL_S, Auditor
from pagefleet.workers.recovery.lease import Lease
from pagefleet.workers.recovery.reaper import REAP_INTERVAL_S, Reaper
from pagefleet.workers.recovery.sweeper import SWEEP_INTERVAL_S, Sweeper
from pagefleet.workers.settings import WorkerSettings
from pagefleet.workers.threads.loop_thread import exit_process
from pagefleet.workers.threads.outage_retry import OutageRetry
from pagefleet.workers.threads.periodic import Periodic

logger = logging.getLogger(__name__)

_PREEMPT_EVERY_S: Final = 0.1
_DRAIN_POLL_S: Final = 0.01


class FleetWorker(Holder):
    """One model's engine and the jobs it holds.

    Args:
        app: the worker's Celery app, for results and callbacks.
        engine: loaded and warm.
    """

    def __init__(
        self, settings: WorkerSettings, worker_id: str, app: Celery, store: JobStore, engine: LLMEngine
    ) -> None:
        self.settings = settings
        self.worker_id = worker_id
        self.card = make_card(settings, engine)
        self._engine = engine
        self._store = store
        self._started_at = time.time()
        self._held: dict[str, ActiveJob] = {}
        self._draining = False
        self.queues = {lane: keys.queues(self.card.name, lane) for lane in keys.LANES}
        self._closer = JobCloser(store, app)
        self.retry = OutageRetry()
        self.metrics = Metrics(self.card.name)
        self.gate = MessageGate(settings.max_request_bytes, keep=store.keep_unreadable)
        self._capacity = Capacity(engine, settings.max_num_seqs)
        self._corrupt_jobs = CorruptJobHandler(
            store,
            self._closer,
            self.retry,
            worker_id=worker_id,
            gate=self.gate,
            metrics=self.metrics,
        )
        self.lease = Lease(
            store,
            settings.lease_s,
            self.card,
            self.status,
            is_retrying=lambda: self.retry.is_retrying,
            file=settings.lease_file,
        )
        self.loop = EngineLoop(engine, self, self.lease, self.metrics)
        self.inspect_stats = InspectStats(engine.stats, lambda: self.loop.batch.num_tokens)
        results = ResultEncoder(app, f"{settings.name}@{worker_id}")
        canvas = Canvas(app, store, self.retry, results)
        self.finisher = Finisher(
            store, app, self.retry, canvas, on_closed=self._on_closed, on_unreadable=self.condemn
        )
        self.publisher = Publisher(
            store,
            worker_id,
            self.retry,
            self.metrics,
            abort=self.loop.abort,
            on_ended=self._on_ended,
            on_lost=self._on_lost,
            on_released=self._on_released,
            on_unreadable=self._on_unreadable,
            tracer=engine.tracer,
        )
        rejector = MessageRejector(store, self.retry, results, canvas, self.gate.record_fault)
        self.admission = Admission(store, worker_id, self.card, engine, self.retry, self, results, rejector)
        self.tokenizer_service = TokenizerService(
            store,
            self.card,
            engine.tokenizer,
            may_answer=lambda: self.lease.valid and not self._draining,
        )
        self._duties = self._make_duties(app)
        self.metrics.registry.register(self._live_metrics())

    def start(self) -> None:
        """Takes the lease, starts the threads and makes the model known. Raises: RedisUnavailable."""
        self.lease.start()
        for part in (self.finisher, self.publisher, self.loop, self.admission, self.tokenizer_service):
            part.start()
        for duty in self._duties:
            duty.start()
        self._store.publish_card(self.card)

    def lanes_with_room(self, num_held: int, num_batch: int) -> list[Lane]:
        """The lanes of which one more message may be taken, the most urgent first; none without a valid
        lease, or when the server is full. The arguments are :meth:`Capacity.lanes_with_room`'s."""
        if self._draining or not self.lease.valid or self.lease.storage_full:
            return []
        # A job takes a seat for each of its choices.
        more = [
            (job.message.lane, max(0, job.num_unfinished_choices - 1)) for job in list(self._held.values())
        ]
        num_held += sum(count for _, count in more)
        num_batch += sum(count for lane, count in more if lane == "batch")
        return self._capacity.lanes_with_room(num_held, num_batch)

    def release_batch_jobs(self, most: int) -> int:
        """Releases running batch jobs, those that came last; returns how many. What still waits for its
        grammar takes no seat in the engine."""
        running = filter(self.publisher.is_in_engine, list(self._held.values()))
        chosen = [job for job in running if job.message.lane == "batch"][-most:]
        for job in chosen:
            self.publisher.give_back(job)
        return len(chosen)

    def cancel(self, job_id: str) -> None:
        """CANCEL (protocol line 16) from inside: the publisher sees the flag with the next STEP; a job that
        nobody runs is ended and closed here."""
        self._cancel(job_id, only_queued=False)

    def revoke(self, job_id: str, *, terminate: bool) -> bool:
        """Cancels a job that nobody runs, and with ``terminate`` one that somebody does.

        Returns:
            Whether Celery should take the task for revoked: not one that runs on or has ended, by this call
            too. Its message would be acknowledged before its callbacks are told.
        """
        verdict = self._cancel(job_id, only_queued=not terminate)
        return terminate if verdict is None else verdict in (CancelVerdict.FLAGGED, CancelVerdict.MISSING)

    def _cancel(self, job_id: str, *, only_queued: bool) -> CancelVerdict | None:
        try:
            verdict = self._store.cancel(job_id, only_queued=only_queued)
            if verdict is CancelVerdict.ENDED:
                self._closer.close(job_id)
        except (RedisUnavailable, ProtocolError) as error:
            logger.warning("job %s could not be cancelled: %s", job_id, error)
            return None
        return verdict

    def status(self) -> WorkerStatus:
        stats, batch, recent = self._engine.stats(), self.loop.batch, self.metrics.recent.summary()
        return WorkerStatus(
            worker_id=self.worker_id,
            model=self.card.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=self._started_at,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            job_ids=list(self._held),
            num_bad_messages=self.gate.num_bad,
            num_free_blocks=stats.num_free_blocks,
            num_blocks=stats.num_blocks,
            num_generation_tokens=batch.num_tokens,
            num_decode_steps=batch.num_steps,
            last_batch_size=batch.last_size,
            max_batch_size=batch.max_size,
            prefix_cache_queries=stats.prefix_cache_queries,
            prefix_cache_hits=stats.prefix_cache_hits,
            is_draining=self._draining,
            lease_s=self.settings.lease_s,
            generation_tok_s=round(recent.generation_tok_s, 1),
            ttft_p50_s=_rounded(recent.ttft_p50_s),
            ttft_p95_s=_rounded(recent.ttft_p95_s),
            fingerprint=self.card.fingerprint,
        )

    def drain(
        self,
        num_held: Callable[[], int],
        run_callbacks: Callable[[], None],
        restore_messages: Callable[[], None],
    ) -> None:
        """DRAIN (protocol line 17): what runs may finish for a while, the rest goes back with its log.

        Args:
            num_held: messages not answered yet.
            run_callbacks: lets Celery acknowledge meanwhile.
            restore_messages: returns what is still unacknowledged to the front of its queue.
        """
        self._draining = True
        self.tokenizer_service.close()
        deadline = time.monotonic() + self.settings.drain_s
        self.retry.set_time_limit(self.settings.drain_s + self.settings.lease_s)
        for duty in self._duties:
            duty.stop()
        self.admission.stop()
        while num_held() and self._held and time.monotonic() < deadline:
            run_callbacks()
            time.sleep(_DRAIN_POLL_S)
        for job in self.admission.give_up_compiling():
            self.publisher.release(job)
        self.loop.stop()
        self.publisher.stop()
        self.finisher.stop()
        run_callbacks()
        if self._held:
            logger.info("%d unfinished jobs go back to their queue", len(self._held))
        restore_messages()
        self.tokenizer_service.join()
        self.lease.release()
        self._engine.close()
        self._store.close_connections()

    # What the engine loop tells, in its thread.

    def before_prefill(self, request_ids: Sequence[str]) -> set[str]:
        return self.publisher.mark(request_ids)

    def on_outputs(self, outputs: Sequence[SequenceOutput]) -> None:
        self.publisher.publish(outputs)

    def on_silent(self, request_ids: Sequence[str]) -> None:
        self.publisher.ask(request_ids)

    def on_refused(self, request_id: str, error: InvalidRequestError) -> None:
        self.publisher.fail_ids([request_id], fleet_error(error))

    def on_failed(self, request_id: str, error: Exception) -> None:
        failure: FleetError = JobFailed(f"The engine could not take this job ({type(error).__name__}).")
        self.publisher.fail_ids([request_id], failure)

    def on_engine_failed(self, suspect_ids: Sequence[str], error: EngineFailedError) -> None:
        """No job fails by it: the suspects are left as by a death (BLAME, protocol line 12), all others are
        released (line 8), and the process ends. The reaper of another worker restores the messages."""
        logger.critical("the engine failed: %s", error, exc_info=error)
        self._draining = True
        self.retry.set_time_limit(self.settings.lease_s)
        for duty in self._duties:
            duty.stop()
        # RedisUnavailable: the lease runs out, and what was held comes back by that.
        with contextlib.suppress(RedisUnavailable):
            self.publisher.abandon(suspect_ids)
            for job in self.admission.give_up_compiling():
                self.publisher.release(job)
        self.publisher.stop()
        self.finisher.stop()
        self.lease.release()
        exit_process(f"the engine has failed; its jobs return to their queues: {error}")

    # What becomes of jobs, in the publisher's and the admission's threads.

    def hold(self, job: ActiveJob) -> None:
        self.metrics.on_claimed(job)
        self._held[job.job_id] = job

    def run(self, job: ActiveJob, request: EngineRequest, *, solo: bool) -> None:
        self.metrics.on_started(job)
        self.publisher.take(job)
        self.loop.add(request, solo=solo)

    def fail(self, job: ActiveJob, error: FleetError) -> None:
        self.publisher.fail(job, error)

    def close(self, message: JobMessage, *, ended_here: bool) -> None:
        self.finisher.put(Ended(message, ended_here))

    def condemn(self, message: JobMessage) -> None:
        held = self._held.get(message.job_id)
        if held is not None and held.message is message:
            self._let_go(held)
        self._corrupt_jobs.handle_unreadable(message)

    def missing(self, message: JobMessage) -> None:
        self._corrupt_jobs.handle_missing(message)

    def refuse(self, job: ActiveJob, error: FleetError) -> None:
        self.gate.record_fault("a job fails", f"the request of job {job.job_id} is none: {error.code}")
        self.publisher.fail(job, error)

    def _on_unreadable(self, job: ActiveJob) -> None:
        self._let_go(job)
        self.condemn(job.message)

    def _on_ended(self, job: ActiveJob) -> None:
        self._let_go(job)
        self.finisher.put(Ended(job.message, True, job))

    def _on_lost(self, job: ActiveJob, why: str) -> None:
        self._let_go(job)
        # Held again: this worker claimed it anew before it heard of the loss.
        if job.job_id in self._held or not self._corrupt_jobs.was_overwritten(job):
            # Of one that is gone the next claim tells.
            level = logging.INFO if why in (StepStatus.GONE, "missing") else logging.WARNING
            logger.log(level, "job %s is not ours any more (%s)", job.job_id, why, extra=job_fields(job))
        # Not dropped at once: it may have come after the job was lost, and be the only one. The next claim
        # tells; what another worker runs is dropped then.
        self.admission.put(job.message)

    def _on_released(self, job: ActiveJob) -> None:
        self._let_go(job)
        job.message.requeue()

    def _on_closed(self, ended: Ended, record: JobRecord) -> None:
        """Told and counted by the worker that ended it; one that nobody ever ran, by who gets its message."""
        if ended.here or not record.attempts:
            self.metrics.on_closed(record, ended.message.lane, ended.job)
            log_end(record, ended.message.lane, ended.job)

    def _let_go(self, job: ActiveJob) -> None:
        """The same worker may have claimed the job again by now: that attempt is another."""
        self.metrics.on_attempt_ended(job)
        if self._held.get(job.job_id) is job:
            del self._held[job.job_id]

    def _make_duties(self, app: Celery) -> list[Periodic]:
        store = self._store
        queues = [name for names in self.queues.values() for name in names]
        reaper = Reaper(store, self.worker_id, app)
        sweeper = Sweeper(
            store,
            app,
            queues,
            grace_s=self.settings.lease_s,
            on_fault=self.gate.record_fault,
            on_dead_letter=self.metrics.on_dead_letter,
        )
        auditor = Auditor(store, self.worker_id, app, queues, is_held=self._held.__contains__)
        preemption = BatchPreemption(
            is_needed=self._batch_is_in_the_way,
            num_waiting=lambda: sum(num_queued(store, name) for name in self.queues["interactive"]),
            release=self.release_batch_jobs,
        )
        return [
            Periodic("reaper", REAP_INTERVAL_S, reaper.reap),
            Periodic("sweeper", SWEEP_INTERVAL_S, sweeper.sweep_if_elected),
            Periodic("auditor", AUDIT_INTERVAL_S, auditor.audit),
            Periodic("batch preemption", _PREEMPT_EVERY_S, preemption.preempt),
            Periodic("metrics", FOLD_INTERVAL_S, self._fold),
        ]

    def _fold(self) -> None:
        self.metrics.fold()
        self.inspect_stats.sample()

    def _live_metrics(self) -> LiveMetrics:
        return LiveMetrics(
            stats=self._engine.stats,
            status=self.status,
            fingerprint=self.card.fingerprint,
            lease=self.lease,
        )

    def _batch_is_in_the_way(self) -> bool:
        """Batch work is held, and there is no room for one more interactive job."""
        held = [job.message.lane for job in list(self._held.values())]
        return (
            "batch" in held
            and not self._draining
            and not self.lanes_with_room(len(held), held.count("batch"))
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
