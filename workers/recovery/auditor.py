"""Auditor: compare the jobs that Redis assigns to this worker with those in its memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from celery import Celery

from pagefleet.api.broker.sending import send_message
from pagefleet.api.contract.messages import JobState
from pagefleet.api.protocol.job_store import JobStore

logger = logging.getLogger(__name__)

AUDIT_INTERVAL_S: Final = 5.0


class Auditor:
    """AUDIT (protocol line 14), the half for jobs: releases jobs that this worker owns and does not hold.

    A job gets into this state if the reply to its CLAIM is lost, or if Redis forgets the end of the job in a
    restart. Nothing else would recover it, because its owner is alive.

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
        """Run one round: release and resend jobs that were also missing in the previous round.

        A job that is missing only once may be in the middle of its claim.

        Returns:
            How many jobs were released.
        """
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
                        "job %s is assigned to this worker but is not in its memory; it was sent again",
                        job.job_id,
                        extra={"job": job.job_id},
                    )
                    num_released += 1
        self._missing = missing
        return num_released
