"""DeadLetters: read, requeue and delete the jobs that were given up."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from pagefleet.api.broker.arguments import request_repr
from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.broker.sending import send_message
from pagefleet.api.contract.messages import JobState
from pagefleet.api.contract.model_cards import CardIndex
from pagefleet.api.protocol import operations
from pagefleet.api.protocol.job_errors import job_not_found
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.prepared import PreparedRequest, check_submitted

if TYPE_CHECKING:
    from celery import Celery


class DeadLetters:
    """The dead letters of one server. A final state never changes, so a requeue creates a new job."""

    def __init__(self, store: JobStore, app: Celery, closer: JobCloser) -> None:
        self._store = store
        self._app = app
        self._closer = closer

    def all(self) -> list[JobRecord]:
        """Return all of them, the oldest first, without their tokens."""
        records = [self._store.read(job_id, with_log=False) for job_id in self._store.dead_letters()]
        return [record for record in records if record is not None]

    def get(self, job_id: str) -> JobRecord:
        """Return one of them. Raises: JobNotFound."""
        record = self._store.read(job_id)
        if record is None or record.state is not JobState.DEAD:
            raise job_not_found(job_id)
        return record

    def requeue(self, job_id: str, *, from_start: bool = False) -> str:
        """Submit the same request as a new job, delete the dead letter, and return the id of the new job.

        If the job waited for a worker with its weights, the new job continues after its tokens.

        Args:
            from_start: discard the tokens, so that a worker with other weights can run the job.

        Raises: JobNotFound, UnknownModel, QueueFull.
        """
        letter = self.get(job_id)
        request = letter.request().model_copy(update={"detached": True})
        card = CardIndex(self._store.cards()).resolve(request.model)
        prepared = PreparedRequest(
            str(uuid.uuid4()), request, card, request.model_dump_json(exclude_defaults=True)
        )
        submission = operations.submit(
            prepared.job_id, request, queue=prepared.queue, channel="", limits=prepared.limits
        )
        if letter.was_refused and not from_start:
            submission = operations.resume(submission, job_id)
        check_submitted(self._store.run(submission), prepared)
        kwargs_repr = request_repr(request, self._store.settings.prompt_chars)
        send_message(self._app, prepared.job_id, prepared.queue, request.priority, kwargs_repr=kwargs_repr)
        self.drop(job_id)
        return prepared.job_id

    def drop(self, job_id: str) -> None:
        """Delete the dead letter with its prompt and its tokens. Raises: JobNotFound."""
        self.get(job_id)
        self._closer.delete(job_id)
