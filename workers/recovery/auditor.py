"""Auditor: a worker compares what the server says that it runs with what it has in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from celery import Celery

from pagefleet.api.broker.sending import send_message
from pagefleet.api.contract.messages import JobState
from pagefleet.api.protocol.job_store import JobStore

logger = logging.getLogger(__name__)

AUDIT_EVERY_S: Final = 5.0


class Auditor:
    """AUDIT (protocol line 14), the half for jobs: owned by this worker and unknown to it.

    It happens where the reply to a CLAIM was lost for good, or where the server forgot the end of a job in
    a restart. Such a job would wait for ever: its owner is alive.

    Args:
        is_held: whether a job is in this worker's memory.
    """

    def __init__(
        self,
        store: JobStore,
        worker_id: str,
        app: Celery,
        queues: Sequence[str],
        is_held: Callable[[str], bool],
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._app = app
        self._queues = tuple(queues)
        self._is_held = is_held
        self._missing: dict[str, int] = {}

    def audit(self) -> int:
        """One round: releases and sends again what was missing in the round before too (a claim may be
        under way). Returns how many jobs that were."""
        missing: dict[str, int] = {}
        num_released = 0
        for queue in self._queues:
            for job in self._store.open_jobs(queue):
                if job.state is not JobState.RUNNING or job.owner != self._worker_id:
                    continue
                if self._is_held(job.job_id):
                    continue
                if self._missing.get(job.job_id) != job.epoch:
                    missing[job.job_id] = job.epoch
                    continue
                if self._store.release(job.job_id, self._worker_id, job.epoch) == "released":
                    send_message(self._app, job.job_id, queue, job.priority)
                    logger.warning(
                        "job %s is ours and not here; it was sent again",
                        job.job_id,
                        extra={"job": job.job_id},
                    )
                    num_released += 1
        self._missing = missing
        return num_released
