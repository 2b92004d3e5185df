"""FleetWorker: one engine, the pipeline that runs jobs on it, the lease, and the worker's periodic tasks."""

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
from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.messages import WorkerStatus
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.engine import LLMEngine
from pagefleet.engine.errors import EngineFailedError
from pagefleet.workers.attempt.pipeline import AttemptPipeline
from pagefleet.workers.job.active_job import JobMessage
from pagefleet.workers.observe.inspect_stats import InspectStats
from pagefleet.workers.observe.live_metrics import LiveMetrics
from pagefleet.workers.observe.metrics import FOLD_INTERVAL_S, Metrics
from pagefleet.workers.prompting.model_card import make_card
from pagefleet.workers.prompting.tokenizer_service import TokenizerService
from pagefleet.workers.queue.capacity import Capacity
from pagefleet.workers.queue.job_revoker import JobRevoker
from pagefleet.workers.queue.lanes import BatchPreemption
from pagefleet.workers.queue.message_gate import MessageGate
from pagefleet.workers.recovery.auditor import AUDIT_INTERVAL_S, Auditor
from pagefleet.workers.recovery.lease import Lease
from pagefleet.workers.recovery.reaper import REAP_INTERVAL_S, Reaper
from pagefleet.workers.recovery.sweeper import SWEEP_INTERVAL_S, Sweeper
from pagefleet.workers.settings import WorkerSettings
from pagefleet.workers.threads.loop_thread import exit_process
from pagefleet.workers.threads.outage_retry import OutageRetry
from pagefleet.workers.threads.periodic import Periodic

logger = logging.getLogger(__name__)

_PREEMPT_INTERVAL_S: Final = 0.1
_DRAIN_POLL_S: Final = 0.01


class FleetWorker:
    """Everything in a worker process that is not Celery's. The Celery pool (``workers/pool.py``) calls it.

    Args:
        app: the worker's Celery app, for results and callbacks.
        engine: loaded and warmed up.
    """

    def __init__(
        self, settings: WorkerSettings, worker_id: str, app: Celery, store: JobStore, engine: LLMEngine
    ) -> None:
        self.settings = settings
        self.worker_id = worker_id
        self.card = make_card(settings, engine)
        self.queues = {lane: keys.queues(self.card.name, lane) for lane in keys.LANES}
        self._engine = engine
        self._store = store
        self._started_at = time.time()
        self._draining = False
        self._retry = OutageRetry()
        self._capacity = Capacity(engine, settings.max_num_seqs)
        self.metrics = Metrics(self.card.name)
        self.gate = MessageGate(settings.max_request_bytes, keep=store.keep_unreadable)
        self.revoker = JobRevoker(store, JobCloser(store, app))
        self.lease = Lease(
            store,
            settings.lease_s,
            self.card,
            self.status,
            is_retrying=lambda: self._retry.is_retrying,
            file=settings.lease_file,
        )
        self.pipeline = AttemptPipeline(
            store,
            app,
            engine,
            self.card,
            self.lease,
            self._retry,
            self.metrics,
            self.gate,
            worker_id=worker_id,
            on_engine_failed=self._on_engine_failed,
        )
        self.inspect_stats = InspectStats(engine.stats, lambda: self.pipeline.loop.batch.num_tokens)
        self.tokenizer_service = TokenizerService(
            store,
            self.card,
            engine.tokenizer,
            may_answer=lambda: self.lease.valid and not self._draining,
        )
        self._periodic_tasks = self._make_periodic_tasks(app)
        self.metrics.registry.register(
            LiveMetrics(
                stats=engine.stats,
                status=self.status,
                fingerprint=self.card.fingerprint,
                lease=self.lease,
            )
        )

    def start(self) -> None:
        """Publish the model card, take the lease and start the threads. Raises RedisUnavailable."""
        # First the card: a client that sees the worker must find its model.
        self._store.publish_card(self.card)
        self.lease.start()
        self.pipeline.start()
        self.tokenizer_service.start()
        for task in self._periodic_tasks:
            task.start()

    def put(self, *messages: JobMessage) -> None:
        """Take messages from the queue."""
        self.pipeline.admission.put(*messages)

    def room(self, num_held: int, num_batch: int) -> dict[Lane, int]:
        """Return how many more messages may be taken from each lane, interactive first.

        None without a valid lease, during a drain, and while Redis is at its memory limit.

        Args:
            num_held: messages that are taken and not settled yet.
            num_batch: how many of them are batch work.
        """
        if self._draining or not self.lease.valid or self.lease.storage_full:
            return {}
        extra = self.pipeline.held.num_extra_sequences()
        return self._capacity.room(num_held + extra.total, num_batch + extra.batch)

    def lanes_with_room(self, num_held: int, num_batch: int) -> list[Lane]:
        """Return the lanes from which one more message may be taken, as :meth:`room`."""
        return [lane for lane, count in self.room(num_held, num_batch).items() if count]

    def status(self) -> WorkerStatus:
        stats, batch = self._engine.stats(), self.pipeline.loop.batch
        recent = self.metrics.recent.summary()
        return WorkerStatus(
            worker_id=self.worker_id,
            model=self.card.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=self._started_at,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            job_ids=self.pipeline.held.ids(),
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
        """DRAIN (protocol line 17): let running jobs finish for ``drain_s``, then release the others.

        Args:
            num_held: returns the number of messages that are not settled yet.
            run_callbacks: lets Celery acknowledge messages meanwhile.
            restore_messages: puts unacknowledged messages back at the front of their queues.
        """
        self._draining = True
        self.tokenizer_service.close()
        deadline = time.monotonic() + self.settings.drain_s
        self._retry.set_time_limit(self.settings.drain_s + self.settings.lease_s)
        self._stop_periodic_tasks()
        self.pipeline.admission.stop()
        while num_held() and self.pipeline.held and time.monotonic() < deadline:
            run_callbacks()
            time.sleep(_DRAIN_POLL_S)
        self.pipeline.stop()
        run_callbacks()
        if self.pipeline.held:
            logger.info("%d unfinished jobs return to their queue", len(self.pipeline.held))
        restore_messages()
        self.tokenizer_service.join()
        self.lease.release()
        self._engine.close()
        self._store.close_connections()

    def _on_engine_failed(self, suspect_ids: Sequence[str], error: EngineFailedError) -> None:
        """Leave the suspects, release all other jobs and exit. No job fails; the reaper of another worker
        restores the messages."""
        logger.critical("the engine failed: %s", error, exc_info=error)
        self._draining = True
        self._retry.set_time_limit(self.settings.lease_s)
        self._stop_periodic_tasks()
        # Without Redis the lease expires, which recovers all jobs.
        with contextlib.suppress(RedisUnavailable):
            self.pipeline.stop_after_engine_failure(suspect_ids)
        self.lease.release()
        exit_process(f"the engine has failed; its jobs return to their queues: {error}")

    def _stop_periodic_tasks(self) -> None:
        for task in self._periodic_tasks:
            task.stop()

    def _make_periodic_tasks(self, app: Celery) -> list[Periodic]:
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
        auditor = Auditor(store, self.worker_id, app, queues, is_held=self.pipeline.held.__contains__)
        preemption = BatchPreemption(
            is_needed=self._batch_blocks_interactive,
            num_waiting=lambda: sum(num_queued(store, name) for name in self.queues["interactive"]),
            release=self.pipeline.release_batch_jobs,
        )
        return [
            Periodic("reaper", REAP_INTERVAL_S, reaper.reap),
            Periodic("sweeper", SWEEP_INTERVAL_S, sweeper.sweep_if_elected),
            Periodic("auditor", AUDIT_INTERVAL_S, auditor.audit),
            Periodic("preemption", _PREEMPT_INTERVAL_S, preemption.preempt),
            Periodic("metrics", FOLD_INTERVAL_S, self._update_metrics),
        ]

    def _update_metrics(self) -> None:
        self.metrics.fold()
        self.inspect_stats.sample()

    def _batch_blocks_interactive(self) -> bool:
        """Whether batch jobs are held and one more interactive job has no room."""
        lanes = [job.message.lane for job in self.pipeline.held]
        return (
            "batch" in lanes
            and not self._draining
            and not self.lanes_with_room(len(lanes), lanes.count("batch"))
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
