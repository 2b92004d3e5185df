"""AttemptPipeline: connects the threads between a message and its acknowledgement.

message -> Admission -> EngineLoop -> Publisher -> Finisher -> message
            (claim)       (step)    (log, stream)   (close)     (ack)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from celery import Celery

from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.contract.errors import FleetError, JobFailed
from pagefleet.api.contract.messages import ModelCard
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import StepStatus
from pagefleet.engine import InvalidRequestError, LLMEngine, PreparedRequest
from pagefleet.engine.errors import EngineFailedError
from pagefleet.engine.requests.output_processor import StepTokens
from pagefleet.workers.attempt.admission import Admission, ClaimHandler
from pagefleet.workers.attempt.attempt_endings import AttemptEndings
from pagefleet.workers.attempt.corrupt_jobs import CorruptJobHandler
from pagefleet.workers.attempt.engine_loop import EngineLoop, LeaseState
from pagefleet.workers.attempt.finisher import EndedJob, Finisher
from pagefleet.workers.attempt.held_jobs import HeldJobs
from pagefleet.workers.attempt.message_rejector import MessageRejector
from pagefleet.workers.attempt.publisher import Publisher
from pagefleet.workers.job.active_job import ActiveJob, JobMessage
from pagefleet.workers.observe.job_log import job_fields, log_end
from pagefleet.workers.observe.metrics import Metrics
from pagefleet.workers.prompting.prompt import fleet_error
from pagefleet.workers.queue.canvas import Canvas
from pagefleet.workers.queue.message_gate import MessageGate
from pagefleet.workers.queue.result_encoder import ResultEncoder
from pagefleet.workers.threads.outage_retry import OutageRetry

logger = logging.getLogger(__name__)


class AttemptPipeline(ClaimHandler):
    """Runs this worker's attempts. It is the :class:`EngineListener` of the loop.

    Args:
        on_engine_failed: called in the engine's thread with the suspects of the last step and the error; no
            step follows.
    """

    def __init__(
        self,
        store: JobStore,
        app: Celery,
        engine: LLMEngine,
        card: ModelCard,
        lease: LeaseState,
        retry: OutageRetry,
        metrics: Metrics,
        gate: MessageGate,
        *,
        worker_id: str,
        on_engine_failed: Callable[[Sequence[str], EngineFailedError], None],
    ) -> None:
        self.held = HeldJobs()
        self._metrics = metrics
        self._gate = gate
        self.on_engine_failed = on_engine_failed
        results = ResultEncoder(app, f"{card.name}@{worker_id}")
        canvas = Canvas(app, store, retry, results)
        rejector = MessageRejector(store, retry, results, canvas, gate.record_fault)
        self._corrupt_jobs = CorruptJobHandler(
            store, JobCloser(store, app), retry, worker_id=worker_id, gate=gate, metrics=metrics
        )
        self.admission = Admission(store, worker_id, card, engine, retry, self, results, rejector)
        self.loop = EngineLoop(engine, self, lease, metrics)
        endings = AttemptEndings(
            store,
            worker_id,
            retry,
            metrics,
            abort=self.loop.abort,
            on_ended=self._on_ended,
            on_lost=self._on_lost,
            on_released=self._on_released,
            on_unreadable=self._on_unreadable,
        )
        self.publisher = Publisher(
            store,
            worker_id,
            retry,
            metrics,
            endings,
            process=engine.process,
            confirm=self.loop.confirm,
            abort=self.loop.abort,
            tracer=engine.tracer,
        )
        self.finisher = Finisher(
            store, app, retry, canvas, on_closed=self._on_closed, on_unreadable=self.handle_unreadable
        )

    def start(self) -> None:
        for part in (self.finisher, self.publisher, self.loop, self.admission):
            part.start()

    def stop(self) -> None:
        """Release all jobs and end the threads, after :meth:`Admission.stop`. The caller requeues the
        messages."""
        self._release_unprepared()
        self.loop.stop()
        self.publisher.stop()
        self.finisher.stop()

    def stop_after_engine_failure(self, suspect_ids: Sequence[str]) -> None:
        """Leave the suspects as if the worker had died (BLAME, protocol line 12), release all other jobs and
        end the threads.

        Raises:
            RedisUnavailable: the suspects could not be marked. All threads have ended, except the engine's,
                which calls this.
        """
        try:
            self.publisher.abandon(suspect_ids)
            self._release_unprepared()
        finally:
            self.publisher.stop()
            self.finisher.stop()

    def release_batch_jobs(self, max_num: int) -> int:
        """Release up to this many batch jobs in the engine, the latest first. Return how many."""
        in_engine = [job for job in self.held if self.publisher.is_in_engine(job)]
        chosen = [job for job in in_engine if job.message.lane == "batch"][-max_num:]
        for job in chosen:
            self.publisher.release(job)
        return len(chosen)

    def _release_unprepared(self) -> None:
        for job in self.admission.stop_preparation():
            self.publisher.release_unprepared(job)

    # ClaimHandler, in the threads of the admission.

    def hold(self, job: ActiveJob) -> None:
        self._metrics.on_claimed(job)
        self.held.add(job)

    def run(self, job: ActiveJob, request: PreparedRequest, *, solo: bool) -> None:
        self._metrics.on_started(job)
        self.publisher.add(job)
        self.loop.add(request, solo=solo)

    def fail(self, job: ActiveJob, error: FleetError) -> None:
        self.publisher.fail(job, error)

    def fail_invalid(self, job: ActiveJob, error: FleetError) -> None:
        self._gate.record_fault("a job fails", f"the request of job {job.job_id} is invalid: {error.code}")
        self.publisher.fail(job, error)

    def close(self, message: JobMessage, *, ended_here: bool) -> None:
        self.finisher.put(EndedJob(message, ended_here))

    def handle_missing(self, message: JobMessage) -> None:
        self._corrupt_jobs.handle_missing(message)

    def handle_unreadable(self, message: JobMessage) -> None:
        if (job := self.held.of_message(message)) is not None:
            self._remove(job)
        self._corrupt_jobs.handle_unreadable(message)

    # EngineListener, in the engine's thread.

    def before_prefill(self, request_ids: Sequence[str]) -> None:
        self.publisher.mark(request_ids)

    def on_tokens(self, tokens: StepTokens) -> None:
        self.publisher.publish(tokens)

    def on_no_token(self, request_ids: Sequence[str]) -> None:
        self.publisher.poll(request_ids)

    def on_request_rejected(self, request_id: str, error: InvalidRequestError) -> None:
        self.publisher.fail_request(request_id, fleet_error(error))

    def on_request_failed(self, request_id: str, error: Exception) -> None:
        failure = JobFailed(f"The request could not be added to the engine ({type(error).__name__}).")
        self.publisher.fail_request(request_id, failure)

    # Events of the publisher and the finisher, in their threads.

    def _on_ended(self, job: ActiveJob) -> None:
        self._remove(job)
        self.finisher.put(EndedJob(job.message, True, job))

    def _on_lost(self, job: ActiveJob, why: str) -> None:
        self._remove(job)
        # If the job is held, this worker has claimed it again before it learned of the loss.
        if job.job_id in self.held or not self._corrupt_jobs.was_overwritten(job):
            # The next claim reports a job whose data is gone.
            level = logging.INFO if why in (StepStatus.GONE, "missing") else logging.WARNING
            logger.log(
                level, "job %s no longer belongs to this worker (%s)", job.job_id, why, extra=job_fields(job)
            )
        # The message may be the only one of the job: it may have arrived after the loss. So it is not
        # dropped here but claimed again; if another worker runs the job, that claim drops it.
        self.admission.put(job.message)

    def _on_released(self, job: ActiveJob) -> None:
        self._remove(job)
        job.message.requeue()

    def _on_unreadable(self, job: ActiveJob) -> None:
        self._remove(job)
        self._corrupt_jobs.handle_unreadable(job.message)

    def _on_closed(self, ended: EndedJob, record: JobRecord) -> None:
        """Log and count a job in the worker that ended it, or if no worker ran it, in this one."""
        if ended.ended_here or not record.attempts:
            self._metrics.on_closed(record, ended.message.lane, ended.attempt)
            log_end(record, ended.message.lane, ended.attempt)

    def _remove(self, job: ActiveJob) -> None:
        self._metrics.on_attempt_ended(job)
        self.held.remove(job)
