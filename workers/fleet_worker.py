"""FleetWorker: the threads between a queue's messages and one engine, wired together.

message -> Admission -> EngineLoop -> Publisher -> Finisher -> message
              (claim)     (step)       (log, live)   (close)     (ack)
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from celery import Celery

from pagefleet.api import keys
from pagefleet.api.closing import JobCloser
from pagefleet.api.errors import FleetError, JobFailed, RedisUnavailable
from pagefleet.api.job_store import JobStore
from pagefleet.api.messages import MAX_SEED, Fingerprint, ModelCard, WorkerStatus
from pagefleet.api.operations import CancelVerdict
from pagefleet.engine import InvalidRequestError, LLMEngine, SequenceOutput
from pagefleet.workers.active_job import ActiveJob
from pagefleet.workers.admission import Admission
from pagefleet.workers.engine_loop import EngineLoop
from pagefleet.workers.finisher import Finisher
from pagefleet.workers.insist import Insist
from pagefleet.workers.lease import Lease
from pagefleet.workers.prompt import fleet_error
from pagefleet.workers.publisher import Publisher
from pagefleet.workers.recovery import Reaper
from pagefleet.workers.settings import WorkerSettings
from pagefleet.workers.sweeper import Sweeper

logger = logging.getLogger(__name__)

_RESERVE_TOKENS: Final = 256
"""What a message that was not looked at yet is assumed to need, at least, of the KV cache."""
_DRAIN_POLL_S: Final = 0.01


class FleetWorker:
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
        self._closer = JobCloser(store, app)
        self.lease = Lease(store, settings.lease_s, self.status)
        self.loop = EngineLoop(engine, self, self.lease)
        self.insist = Insist()
        self.finisher = Finisher(store, app, self.insist)
        self.reaper = Reaper(store, worker_id, app)
        queues = [keys.queue(self.card.name, lane) for lane in keys.LANES]
        self.sweeper = Sweeper(store, app, queues, patience_s=2 * settings.lease_s)
        self.publisher = Publisher(
            store,
            worker_id,
            self.insist,
            abort=self.loop.abort,
            on_ended=self._on_ended,
            on_lost=self._on_lost,
        )
        self.admission = Admission(
            store,
            worker_id,
            self.card,
            engine,
            self.loop,
            self.publisher,
            self.insist,
            draw_seed=lambda: secrets.randbelow(MAX_SEED),
            on_final=self.finisher.put,
            on_claimed=self._on_claimed,
        )

    def start(self) -> None:
        """Takes the lease, starts the threads and makes the model known. Raises: RedisUnavailable."""
        self.lease.start()
        parts = (self.finisher, self.publisher, self.loop, self.admission, self.reaper, self.sweeper)
        for part in parts:
            part.start()
        self._store.publish_card(self.card)

    def has_room(self, num_held: int) -> bool:
        """Whether one more message may be taken off the queue: a seat, KV blocks, and a valid lease.

        Args:
            num_held: messages taken and not answered yet.
        """
        if self._draining or not self.lease.valid or num_held >= self.settings.max_num_seqs:
            return False
        num_waiting = num_held - self._engine.stats().num_running
        reserve = self._engine.num_required_blocks(_RESERVE_TOKENS)
        return self._engine.num_free_blocks >= (max(0, num_waiting) + 1) * reserve or num_held == 0

    def cancel(self, job_id: str) -> None:
        """CANCEL (protocol line 16) from inside: the publisher sees the flag with the next STEP; a job that
        nobody runs is ended and closed here."""
        try:
            if self._store.cancel(job_id) is CancelVerdict.ENDED:
                self._closer.close(job_id)
        except RedisUnavailable as error:
            logger.warning("job %s could not be cancelled: %s", job_id, error)

    def status(self) -> WorkerStatus:
        stats, batch = self._engine.stats(), self.loop.batch
        return WorkerStatus(
            worker_id=self.worker_id,
            model=self.card.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=self._started_at,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            num_free_blocks=stats.num_free_blocks,
            num_blocks=stats.num_blocks,
            num_generation_tokens=batch.num_tokens,
            num_decode_steps=batch.num_steps,
            last_batch_size=batch.last_size,
            max_batch_size=batch.max_size,
            prefix_cache_queries=stats.prefix_cache_queries,
            prefix_cache_hits=stats.prefix_cache_hits,
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
        deadline = time.monotonic() + self.settings.drain_s
        self.insist.at_most(self.settings.drain_s + self.settings.lease_s)
        self.reaper.stop()
        self.sweeper.stop()
        self.admission.stop()
        while num_held() and self._held and time.monotonic() < deadline:
            run_callbacks()
            time.sleep(_DRAIN_POLL_S)
        self.loop.stop()
        self.publisher.stop()
        self.finisher.stop()
        run_callbacks()
        if self._held:
            logger.info("%d running jobs go back to their queue", len(self._held))
        restore_messages()
        self.lease.give_up()
        self._engine.close()
        self._store.close_connections()

    # What the engine loop tells, in its thread.

    def before_prefill(self, job_ids: Sequence[str]) -> set[str]:
        return self.publisher.mark(job_ids)

    def on_outputs(self, outputs: Sequence[SequenceOutput]) -> None:
        self.publisher.publish(outputs)

    def on_refused(self, job_id: str, error: InvalidRequestError) -> None:
        self.publisher.fail_ids([job_id], fleet_error(error))

    def on_failed(self, job_ids: Sequence[str], error: Exception) -> None:
        failure: FleetError = JobFailed(f"The engine failed on this job's batch: {error}")
        self.publisher.fail_ids(job_ids, failure)

    # What becomes of jobs, in the publisher's and the admission's threads.

    def _on_claimed(self, job: ActiveJob) -> None:
        self._held[job.job_id] = job

    def _on_ended(self, job: ActiveJob) -> None:
        self._held.pop(job.job_id, None)
        self.finisher.put(job.message)

    def _on_lost(self, job: ActiveJob) -> None:
        self._held.pop(job.job_id, None)
        job.message.dropped()


def make_card(settings: WorkerSettings, engine: LLMEngine) -> ModelCard:
    info = engine.info
    fingerprint = Fingerprint(
        weights=info.fingerprint.weights,
        tokenizer=info.fingerprint.tokenizer,
        dtype=info.fingerprint.dtype,
        backend=info.fingerprint.backend,
        version=info.fingerprint.version,
    )
    aliases = dict.fromkeys([settings.model, *settings.aliases])
    return ModelCard(
        name=settings.name,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        aliases=[alias for alias in aliases if alias != settings.name],
        max_queue_depth=settings.max_queue_depth,
        fingerprint=fingerprint,
    )
