"""Admission: claim the jobs of messages from the queue, and check and prepare them for the engine."""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

from pydantic import ValidationError

from pagefleet.api.contract.errors import FleetError, InvalidRequest, JobExists, ProtocolError
from pagefleet.api.contract.messages import MAX_SEED, PROTOCOL_VERSION, GenerateRequest, ModelCard
from pagefleet.api.contract.model_cards import CardIndex
from pagefleet.api.contract.requests import check_size, invalid_request
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import Claim, ClaimVerdict
from pagefleet.api.protocol.prepared import check_submitted, prepare, submit_operation
from pagefleet.engine import LLMEngine, PreparedRequest
from pagefleet.workers.attempt.message_rejector import MessageRejector
from pagefleet.workers.attempt.preparation import RequestPreparation
from pagefleet.workers.attempt.resumption import new_choices, resume
from pagefleet.workers.attempt.start_event import start_fields
from pagefleet.workers.job.active_job import ActiveJob, JobMessage
from pagefleet.workers.job.bare_message import BareMessage
from pagefleet.workers.job.job_times import JobTimes
from pagefleet.workers.queue.result_encoder import ResultEncoder
from pagefleet.workers.threads.loop_thread import LoopThread
from pagefleet.workers.threads.outage_retry import OutageRetry

logger = logging.getLogger(__name__)

_MAX_BATCH: Final = 64


class ClaimHandler(ABC):
    """Decides what happens to jobs after their claim. Called in the threads of the admission."""

    @abstractmethod
    def hold(self, job: ActiveJob) -> None:
        """This worker owns the job from now on."""

    @abstractmethod
    def run(self, job: ActiveJob, request: PreparedRequest, *, solo: bool) -> None:
        """The job is ready for the engine."""

    @abstractmethod
    def fail(self, job: ActiveJob, error: FleetError) -> None:
        """No worker of this model can run the job."""

    @abstractmethod
    def fail_invalid(self, job: ActiveJob, error: FleetError) -> None:
        """The request in the job's hash is invalid, although SUBMIT validates requests."""

    @abstractmethod
    def close(self, message: JobMessage, *, ended_here: bool) -> None:
        """The job has ended, in this claim or before, and must be closed."""

    @abstractmethod
    def handle_missing(self, message: JobMessage) -> None:
        """Redis has no data of the job."""

    @abstractmethod
    def handle_unreadable(self, message: JobMessage) -> None:
        """The job's data in Redis cannot be read."""


class Admission:
    """CLAIM (protocol line 4) in a separate thread, many jobs per call.

    After :meth:`stop` nothing is claimed; messages that were not claimed stay unacknowledged.
    """

    def __init__(
        self,
        store: JobStore,
        worker_id: str,
        card: ModelCard,
        engine: LLMEngine,
        retry: OutageRetry,
        handler: ClaimHandler,
        results: ResultEncoder,
        rejector: MessageRejector,
    ) -> None:
        self._results = results
        self._rejector = rejector
        self._store = store
        self._worker_id = worker_id
        self._cards = CardIndex([card])
        self._fingerprint = card.fingerprint.model_dump_json()
        self._retry = retry
        self._handler = handler
        self._preparation = RequestPreparation(engine, card, on_ready=self._run_job, on_error=handler.fail)
        self._messages: queue.SimpleQueue[Sequence[JobMessage]] = queue.SimpleQueue()
        self._stopping = False
        self._thread = LoopThread("admission", self._run)

    def start(self) -> None:
        self._thread.start()
        self._preparation.start()

    def put(self, *messages: JobMessage) -> None:
        """Claim jobs, those of one call together: each call wakes the thread once."""
        self._messages.put(messages)

    def stop(self) -> None:
        """Stop claiming. Grammars are still compiled until :meth:`stop_preparation`."""
        self._stopping = True
        self._messages.put(())
        self._thread.join()

    def stop_preparation(self) -> list[ActiveJob]:
        """Return the claimed jobs that did not reach the engine and no longer will."""
        return self._preparation.stop()

    def _run(self) -> None:
        while not self._stopping:
            batch = self._next_batch()
            if not self._stopping:
                self._claim([message for message in batch if not self._reject_refusal(message)])

    def _next_batch(self) -> list[JobMessage]:
        batch = [*self._messages.get()]
        with contextlib.suppress(queue.Empty):
            while len(batch) < _MAX_BATCH:
                batch += self._messages.get_nowait()
        return batch

    def _reject_refusal(self, message: JobMessage) -> bool:
        """Reject a message that the message gate has refused. Return whether it was one."""
        if message.refusal is None:
            return False
        self._rejector.reject(message, InvalidRequest(message.refusal, job_id=message.job_id))
        return True

    def _claim(self, batch: list[JobMessage]) -> None:
        if not batch:
            return
        job_ids = [message.job_id for message in batch]
        started = {
            message.job_id: self._results.started(message.job_id, message.context) for message in batch
        }
        claims = self._retry(
            functools.partial(self._store.claim, job_ids, self._worker_id, self._fingerprint, started)
        )
        for message, claim in zip(batch, claims, strict=True):
            self._handle(message, claim)

    def _handle(self, message: JobMessage, claim: Claim) -> None:
        match claim.verdict:
            case ClaimVerdict.CLAIMED:
                self._admit(message, claim)
            case ClaimVerdict.FINAL | ClaimVerdict.ENDED:
                self._handler.close(message, ended_here=claim.verdict is ClaimVerdict.ENDED)
            case ClaimVerdict.ELSEWHERE | ClaimVerdict.EARLY:
                message.drop()
            case ClaimVerdict.NO_LEASE:
                message.requeue()
            case ClaimVerdict.REFUSED:
                self._defer(message, claim)
            case ClaimVerdict.UNREADABLE:
                self._handler.handle_unreadable(message)
            case ClaimVerdict.MISSING if message.bare is None:
                logger.info("job %s: a message arrived, but Redis has no such job", message.job_id)
                self._handler.handle_missing(message)
            case ClaimVerdict.MISSING:
                self._create(message, message.bare)

    def _defer(self, message: JobMessage, claim: Claim) -> None:
        logger.info(
            "job %s is not taken (%s); it is sent again in %.1f s",
            message.job_id,
            claim.reason,
            claim.retry_in_s,
            extra={"job": message.job_id},
        )
        message.defer()

    def _create(self, message: JobMessage, bare: BareMessage) -> None:
        """Submit the job of a bare message, with the checks and limits of a client's submit."""
        try:
            seed, max_bytes = secrets.randbelow(MAX_SEED), self._store.settings.max_request_bytes
            prepared = prepare(self._cards, message.job_id, bare.fields(), seed, max_bytes)
            # `again`: the message may belong to a job that was deleted, which must not be created anew.
            submit = submit_operation(prepared, again=True, schedule=bare.schedule())
            check_submitted(self._retry(functools.partial(self._store.run, submit)), prepared)
        except JobExists:
            pass  # created in the meantime: the next claim decides
        except FleetError as error:
            self._rejector.reject(message, error)
            return
        self.put(message)

    def _admit(self, message: JobMessage, claim: Claim) -> None:
        times = JobTimes(claim.attempt, claim.taken_over, claim.waited_s)
        job = ActiveJob(message.job_id, claim.epoch, message, times)
        self._handler.hold(job)
        try:
            request = self._parse(claim.request_json)
        except FleetError as error:
            self._handler.fail_invalid(job, error)
            return
        try:
            job.choices = new_choices(request, claim.num_tokens)
            if any(claim.num_tokens):
                record = self._retry(functools.partial(self._store.read, job.job_id))
                resume(job.choices, claim.num_tokens, record)
        except ProtocolError:
            self._handler.handle_unreadable(message)
            return
        self._preparation.prepare(job, request, solo=claim.solo)

    def _parse(self, request_json: str) -> GenerateRequest:
        check_size(len(request_json.encode()), self._store.settings.max_request_bytes)
        try:
            request = GenerateRequest.model_validate_json(request_json)
        except ValidationError as error:
            raise invalid_request(error) from None
        if request.v > PROTOCOL_VERSION:
            raise ProtocolError(
                f"The request has protocol version {request.v}, but this worker supports only versions up to "
                f"{PROTOCOL_VERSION}. Upgrade the worker."
            )
        return request

    def _run_job(
        self, job: ActiveJob, request: GenerateRequest, prepared: PreparedRequest, solo: bool
    ) -> None:
        job.tenant = request.tenant
        prompt_token_ids = list(prepared.request.prompt_token_ids)
        job.num_prompt_tokens = len(prompt_token_ids)
        if request.return_prompt_token_ids:
            job.choices[0].prompt_token_ids = prompt_token_ids
        self._handler.run(job, prepared, solo=solo)
        job.message.mark_started(start_fields(job, request, self._store.settings.prompt_chars))
