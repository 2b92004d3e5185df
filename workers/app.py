"""Build and run one worker process: load the engine, take the lease, then consume the queue."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import celery.signals
from celery import Celery, bootsteps

from pagefleet.api.broker.celery_app import make_celery, make_queues
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.engine import EngineConfig, LLMEngine, NullOptions
from pagefleet.workers.fleet_worker import FleetWorker
from pagefleet.workers.observe.metrics_server import served_metrics
from pagefleet.workers.pool import EnginePool
from pagefleet.workers.queue.backlog import Backlog
from pagefleet.workers.queue.lanes import take_lanes_in_order
from pagefleet.workers.queue.task_events import batch_events
from pagefleet.workers.queue.unacked import UnackedMessages, reuse_client
from pagefleet.workers.settings import WorkerSettings, let_threads_sleep, new_worker_id
from pagefleet.workers.tasks import cancel_on_revoke, register_tasks

logger = logging.getLogger(__name__)

Report = Callable[[str, float], None]


class AdmissionStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Consumes messages only while the engine has room (protocol line 3).

    Celery starts this step again for each connection to the broker.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        pool: EnginePool = consumer.pool
        channel, events = consumer.task_consumer.channel, consumer.event_dispatcher
        reuse_client(channel)
        reuse_client(events.producer.channel)
        unacked = UnackedMessages(channel, pool.hub_calls.flush_soon)
        unacked.guard()
        worker, gate, tasks = pool.worker, pool.worker.gate, pool.app.tasks
        backlog = Backlog(
            channel,
            unacked,
            gate.examiner(tasks),
            pool.room,
            {lane: names[0] for lane, names in worker.queues.items()},
            worker.settings.lease_s,
            pool.put_together,
        )
        gate.guard(channel, pool.app.amqp.queues, tasks)
        backlog.follow()
        batch_events(events)

        def flush() -> None:
            unacked.flush()
            events.flush(errors=False)

        pool.use_channel(channel, flush)
        qos = channel.qos
        within_prefetch = qos.can_consume

        def can_consume(_qos: Any) -> bool:
            # kombu calls this before each BRPOP and before it reads a reply. Redis may have popped a message
            # for a BRPOP that has been sent, so that reply must be read even without room.
            if channel._in_poll:
                return True
            return bool(pool.lanes_with_room()) and bool(within_prefetch())

        qos.can_consume = MethodType(can_consume, qos)
        take_lanes_in_order(channel, pool.lanes_with_room, pool.worker.queues)


def engine_config(settings: WorkerSettings) -> EngineConfig:
    return EngineConfig(
        model=settings.model,
        revision=settings.revision,
        dtype=settings.dtype,
        device=settings.device,
        backend=settings.backend,
        use_generation_config=settings.use_generation_config,
        chat_template=settings.chat_template,
        num_blocks=settings.num_blocks,
        kv_memory_bytes=settings.kv_memory,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        num_speculative_tokens=settings.speculate,
        overlap_steps=settings.overlap_steps,
        max_model_len=settings.max_model_len,
        num_threads=settings.num_threads,
        cache_dir=settings.cache_dir,
        trace_steps=settings.trace_steps,
        trace_file=settings.trace_file or Path(f"pagefleet-trace-{os.getpid()}.json"),
        max_step_s=settings.lease_s / 4,
        null=NullOptions(
            step_time_s=settings.null_step_time_s,
            token_time_s=settings.null_token_time_s,
            period=settings.null_period,
            recites=settings.null_recites,
            faults=settings.null_faults,
            weights=settings.null_weights,
            version=settings.null_version,
        ),
    )


def make_worker_app(settings: WorkerSettings, worker_id: str) -> Celery:
    """Return the worker's Celery app. The caller sets its ``fleet_worker``."""
    app = make_celery(settings, worker_id=worker_id)
    app.conf.update(
        task_queues=make_queues(settings.name),
        worker_pool=EnginePool,
        worker_concurrency=settings.max_num_seqs,
    )
    register_tasks(app)
    app.steps["consumer"].add(AdmissionStep)
    return app


def run_worker(settings: WorkerSettings, report: Report) -> int:
    """Run the worker until SIGTERM or Ctrl-C, then drain it.

    Args:
        report: called with the name and the duration in seconds of each stage of the start.

    Returns:
        The process's exit status.

    Raises:
        RedisUnavailable, EngineError, ConfigurationError: the worker cannot start. No message was taken.
    """
    started_at = time.monotonic()
    let_threads_sleep()
    store = JobStore(settings)
    store.cards()
    engine = LLMEngine.from_config(engine_config(settings), report)
    if settings.backend != "null":
        # Otherwise the first request with a grammar would block all others.
        engine.prepare_grammars()
    worker_id = new_worker_id(settings.host_name)
    app = make_worker_app(settings, worker_id)
    worker = FleetWorker(settings, worker_id, app, store, engine)
    app.fleet_worker = worker
    receiver = cancel_on_revoke(worker.revoker)
    if settings.debug_wedge:
        signal.signal(signal.SIGUSR2, lambda *_: worker.pipeline.loop.wedge())
    celery.signals.setup_logging.connect(_keep_logging)

    def on_ready(**_: Any) -> None:
        report("ready", time.monotonic() - started_at)

    celery.signals.worker_ready.connect(on_ready)
    consumer = app.Worker(
        hostname=f"{settings.name}@{worker_id}",
        without_mingle=True,
        without_gossip=True,
        task_events=True,
        quiet=True,
    )
    with served_metrics(settings, worker.metrics.registry):
        # The 250,000 objects that exist now are permanent. Exclude them from garbage collection, which would
        # otherwise stop all streams for 0.25 s.
        gc.collect()
        gc.freeze()
        consumer.start()
    del receiver
    return int(consumer.exitcode or 0)


def _keep_logging(**_: Any) -> None:
    """Celery does not configure logging if its signal has a receiver."""
