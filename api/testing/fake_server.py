"""FakeServer: the jobs and cards of a fleet in memory; both fake fleets are clients of one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pagefleet.api.contract import keys
from pagefleet.api.contract.fleet_status import FleetStatus, QueueStatus
from pagefleet.api.contract.messages import ModelCard
from pagefleet.api.contract.model_cards import CardIndex
from pagefleet.api.protocol.job_errors import job_not_found
from pagefleet.api.protocol.operation_types import Submitted
from pagefleet.api.protocol.prepared import PreparedRequest, check_submitted, job_exists, prepare
from pagefleet.api.testing.fake_job import FakeJob
from pagefleet.api.testing.fake_model import FakeTokenizer, Reply


class FakeServer:
    """
    Args:
        is_paused: queue jobs and answer none until :meth:`run` is called.
    """

    def __init__(self, reply: Reply, cards: Sequence[ModelCard], *, is_paused: bool) -> None:
        self.cards = CardIndex(cards)
        self.tokenizer = FakeTokenizer()
        self._reply = reply
        self._is_paused = is_paused
        self._jobs: dict[str, FakeJob] = {}
        self._seeds = itertools.count(1)

    def run(self) -> None:
        """Answer all queued jobs in the order of their submission, and from now on each at its submit."""
        self._is_paused = False
        for job in self._jobs.values():
            job.run(self._reply)

    def job(self, job_id: str) -> FakeJob:
        """Raises: JobNotFound."""
        if job_id not in self._jobs:
            raise job_not_found(job_id)
        return self._jobs[job_id]

    def delete(self, job_id: str) -> None:
        """Raises: JobNotFound."""
        self.job(job_id).cancel()
        del self._jobs[job_id]

    def prepare(self, job_id: str | None, fields: Mapping[str, Any]) -> PreparedRequest:
        """Raises: InvalidRequest, ContextTooLong, UnknownModel."""
        return prepare(self.cards, job_id, fields, next(self._seeds))

    def submit(self, prepared: PreparedRequest) -> FakeJob | None:
        """Queue a new job.

        Returns:
            None if a job with this id and request exists.

        Raises:
            JobExists, QueueFull, InvalidRequest.
        """
        known = self._jobs.get(prepared.job_id)
        if known is not None:
            if known.prepared.asked != prepared.asked:
                raise job_exists(prepared.job_id)
            return None
        check_submitted(self._room_for(prepared), prepared)
        job = self._jobs[prepared.job_id] = FakeJob(prepared)
        return job

    def answer(self, job: FakeJob) -> None:
        """Run the job, unless the server is paused."""
        if not self._is_paused:
            job.run(self._reply)

    def status(self) -> FleetStatus:
        queues = []
        for card in self.cards.cards:
            for lane in keys.LANES:
                name = keys.queue(card.name, lane)
                num_open = self._num_open(name)
                queues.append(QueueStatus(name, card.name, lane, num_open, num_open))
        return FleetStatus(list(self.cards.cards), [], queues, [], [], 0)

    def _room_for(self, prepared: PreparedRequest) -> Submitted:
        """Return what SUBMIT would. Jobs do not expire here: they count as stored until they are deleted."""
        limits, tenant = prepared.limits, prepared.request.tenant
        depth = self._num_open(prepared.queue)
        if depth >= limits.max_depth:
            return Submitted(False, depth=depth)
        if tenant is None:
            return Submitted(True)
        own = [job for job in self._jobs.values() if job.prepared.request.tenant == tenant]
        num_choices = sum(
            job.num_choices for job in own if job.prepared.queue == prepared.queue and not job.state.is_final
        )
        if num_choices + prepared.request.sampling.n > limits.max_tenant_depth:
            return Submitted(False, tenant_depth=num_choices)
        num_bytes = sum(job.prepared.num_reserved_bytes for job in own)
        if num_bytes + prepared.num_reserved_bytes > limits.max_tenant_bytes:
            return Submitted(False, tenant_bytes=num_bytes)
        return Submitted(True)

    def _num_open(self, queue_name: str) -> int:
        jobs = [job for job in self._jobs.values() if job.prepared.queue == queue_name]
        return sum(not job.state.is_final for job in jobs)
