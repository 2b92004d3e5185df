"""Admission: from a message of the queue to a sequence in the engine, or to the reason why not."""

from __future__ import annotations

import functools
import logging
import queue
import secrets
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from pydantic import ValidationError

from pagefleet.api.contract.errors import FleetError, InvalidRequest, JobExists, JobFailed, ProtocolError
from pagefleet.api.contract.messages import MAX_SEED, PROTOCOL_VERSION, GenerateRequest, ModelCard
from pagefleet.api.contract.model_cards import CardIndex
from pagefleet.api.contract.requests import check_size, invalid_request
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import Claim, ClaimVerdict
from pagefleet.api.protocol.prepared import check_submitted, prepare, submit_operation
from pagefleet.engine import EngineRequest, LLMEngine
from pagefleet.workers.attempt.message_rejector import MessageRejector
from pagefleet.workers.attempt.resumption import new_choices, resume
from pagefleet.workers.attempt.start_event import start_fields
from pagefleet.workers.job.active_job import ActiveJob, JobMessage
from pagefleet.workers.job.bare_message import BareMessage
from pagefleet.workers.job.job_times import JobTimes
from pagefleet.workers.job.output_encoder import OutputEncoder, TokenFieldCache
from pagefleet.workers.observe.job_log import job_fields
from pagefleet.workers.prompting.prompt import echo_text, engine_request
from pagefleet.workers.queue.result_encoder import ResultEncoder
from pagefleet.workers.threads.loop_thread import LoopThread
from pagefleet.workers.threads.outage_retry import OutageRetry

logger = logging.getLogger(__name__)

_MAX_BATCH: Final = 64
_NUM_COMPILERS: Final = 2


class Holder(ABC):
    """What becomes of claimed jobs; called from the admission's threads."""

    @abstractmethod
    def hold(self, job: ActiveJob) -> None:
        """The job is this worker's from now on."""

    @abstractmethod
    def run(self, job: ActiveJob, request: EngineRequest, *, solo: bool) -> None:
        """The job is ready for the engine."""

    @abstractmethod
    def fail(self, job: ActiveJob, error: FleetError) -> None:
        """The job can't be run by anybody."""

    @abstractmethod
    def close(self, message: JobMessage, *, ended_here: bool) -> None:
        """The job has ended, by this claim or before it; it must be closed."""

    @abstractmethod
    def refuse(self, job: ActiveJob, error: FleetError) -> None:
        """Its hash holds no request that this worker can obey: it fails, and is counted."""

    @abstractmethod
    def missing(self, message: JobMessage) -> None:
        """The server knows no such job, or none any more."""

    @abstractmethod
    def condemn(self, message: JobMessage) -> None:
        """What the server holds of the job cannot be read."""


class Admission:
    """Claims jobs (protocol line 4), many in one round trip, in a thread of its own."""

    def __init__(
        self,
        store: JobStore,
        worker_id: str,
        card: ModelCard,
        engine: LLMEngine,
        retry: OutageRetry,
        holder: Holder,
        results: ResultEncoder,
        rejector: MessageRejector,
    ) -> None:
        self._results = results
        self._rejector = rejector
        self._store = store
        self._worker_id = worker_id
        self._card = card
        self._cards = CardIndex([card])
        self._fingerprint = card.fingerprint.model_dump_json()
        self._engine = engine
        self._token_fields = TokenFieldCache(engine.tokenizer)
        self._retry = retry
        self._holder = holder
        self._messages: queue.SimpleQueue[JobMessage | None] = queue.SimpleQueue()
        self._stopping = False
        self._thread = LoopThread("admission", self._run)
        # Compiling a grammar takes milliseconds, or a second: jobs without one don't wait for it.
        self._with_grammar: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._compilers = [LoopThread(f"grammar-{n}", self._compile) for n in range(_NUM_COMPILERS)]
        # The jobs that a compiler may still hand on. Who takes one out, under the lock, settles it.
        self._uncompiled: set[ActiveJob] = set()
        self._settling = threading.Lock()

    def start(self) -> None:
        for thread in (self._thread, *self._compilers):
            thread.start()

    def stop(self) -> None:
        """Nothing more is claimed; messages that were not claimed yet stay unacknowledged. Grammars are still
        compiled, until :meth:`give_up_compiling`."""
        self._stopping = True
        self._messages.put(None)
        self._thread.join()

    def give_up_compiling(self) -> list[ActiveJob]:
        """The jobs that did not come to the engine: they will not any more. A grammar that is being compiled
        at this moment is not waited for."""
        with self._settling:
            given_up = sorted(self._uncompiled, key=lambda job: job.serial)
            self._uncompiled.clear()
        for _ in self._compilers:
            self._with_grammar.put(None)
        return given_up

    def put(self, message: JobMessage) -> None:
        self._messages.put(message)

    def _run(self) -> None:
        while not self._stopping:
            batch = self._next_batch()
            if self._stopping:
                continue
            for message in batch:
                if message.refusal is not None:
                    self._rejector.reject(message, InvalidRequest(message.refusal, job_id=message.job_id))
            batch = [message for message in batch if message.refusal is None]
            if not batch:
                continue
            job_ids = [message.job_id for message in batch]
            started = {
                message.job_id: self._results.started(message.job_id, message.context) for message in batch
            }
            claims = self._retry(
                functools.partial(self._store.claim, job_ids, self._worker_id, self._fingerprint, started)
            )
            for message, claim in zip(batch, claims, strict=True):
                self._handle(message, claim)

    def _next_batch(self) -> list[JobMessage]:
        batch = [self._messages.get()]
        try:
            while len(batch) < _MAX_BATCH:
                batch.append(self._messages.get_nowait())
        except queue.Empty:
            pass
        return [message for message in batch if message is not None]

    def _handle(self, message: JobMessage, claim: Claim) -> None:
        match claim.verdict:
            case ClaimVerdict.CLAIMED:
                self._admit(message, claim)
            case ClaimVerdict.FINAL | ClaimVerdict.ENDED:
                self._holder.close(message, ended_here=claim.verdict is ClaimVerdict.ENDED)
            case ClaimVerdict.ELSEWHERE | ClaimVerdict.EARLY:
                message.drop()
            case ClaimVerdict.NO_LEASE:
                message.requeue()
            case ClaimVerdict.REFUSED:
                self._refuse(message, claim)
            case ClaimVerdict.UNREADABLE:
                self._holder.condemn(message)
            case ClaimVerdict.MISSING if message.bare is None:
                logger.info("job %s: its message came, but the server knows no such job", message.job_id)
                self._holder.missing(message)
            case ClaimVerdict.MISSING:
                self._create(message, message.bare)

    def _refuse(self, message: JobMessage, claim: Claim) -> None:
        logger.info(
            "job %s is not taken (%s); it is sent again in %.1f s",
            message.job_id,
            claim.reason,
            claim.retry_in_s,
            extra={"job": message.job_id},
        )
        message.defer()

    def _create(self, message: JobMessage, bare: BareMessage) -> None:
        """A service sent the message itself, past submit: the same checks and limits apply here."""
        try:
            seed, max_bytes = secrets.randbelow(MAX_SEED), self._store.settings.max_request_bytes
            prepared = prepare(self._cards, message.job_id, bare.fields(), seed, max_bytes)
            # Of a job that was deleted its message may still have come.
            submit = submit_operation(prepared, again=True, schedule=bare.schedule())
            check_submitted(self._retry(functools.partial(self._store.run, submit)), prepared)
        except JobExists:
            pass  # somebody has made it meanwhile: the next claim tells
        except FleetError as error:
            self._rejector.reject(message, error)
            return
        self._messages.put(message)

    def _admit(self, message: JobMessage, claim: Claim) -> None:
        times = JobTimes(claim.attempt, claim.taken_over, claim.waited_s)
        job = ActiveJob(message.job_id, claim.epoch, message, times)
        self._holder.hold(job)
        try:
            request = self._parse(claim.request_json)
        except FleetError as error:
            self._holder.refuse(job, error)
            return
        try:
            job.choices = new_choices(request, claim.num_tokens)
            if any(claim.num_tokens):
                record = self._retry(functools.partial(self._store.read, job.job_id))
                resume(job.choices, claim.num_tokens, record)
        except ProtocolError:
            self._holder.condemn(message)
            return
        if request.structured_outputs is None:
            self._prepared(job, request, claim.solo)()
        else:
            self._uncompiled.add(job)
            self._with_grammar.put(functools.partial(self._prepare_with_grammar, job, request, claim.solo))

    def _compile(self) -> None:
        while (prepare_job := self._with_grammar.get()) is not None:
            prepare_job()

    def _prepare_with_grammar(self, job: ActiveJob, request: GenerateRequest, solo: bool) -> None:
        if job not in self._uncompiled:
            return
        settle = self._prepared(job, request, solo)
        with self._settling:
            if job in self._uncompiled:
                self._uncompiled.remove(job)
                settle()

    def _prepared(self, job: ActiveJob, request: GenerateRequest, solo: bool) -> Callable[[], None]:
        """What is to be done with the job: the engine gets it, or it fails."""
        try:
            to_compute = engine_request(job.request_id, request, job.choices, self._engine, self._card)
            job.encoder = OutputEncoder(
                self._token_fields, echo_text(request, to_compute, self._engine.tokenizer)
            )
        except FleetError as error:
            return functools.partial(self._holder.fail, job, error)
        except Exception as error:  # noqa: BLE001
            # A tokenizer or a template is not ours: what it throws at one job must not end the others'.
            # Its words may quote the prompt: the log gets the place only.
            place = "".join(traceback.format_tb(error.__traceback__))
            kind = type(error).__name__
            logger.error(
                "job %s could not be prepared: %s\n%s", job.job_id, kind, place, extra=job_fields(job)
            )
            failure = JobFailed(f"The worker could not prepare this request ({kind}).")
            return functools.partial(self._holder.fail, job, failure)
        return lambda: self._run_job(job, request, to_compute, solo)

    def _run_job(
        self, job: ActiveJob, request: GenerateRequest, to_compute: EngineRequest, solo: bool
    ) -> None:
        job.tenant = request.tenant
        prompt_token_ids = list(to_compute.prompt_token_ids)
        job.num_prompt_tokens = len(prompt_token_ids)
        if request.return_prompt_token_ids:
            job.choices[0].prompt_token_ids = prompt_token_ids
        self._holder.run(job, to_compute, solo=solo)
        job.message.mark_started(start_fields(job, request, self._store.settings.prompt_chars))

    def _parse(self, request_json: str) -> GenerateRequest:
        check_size(len(request_json.encode()), self._store.settings.max_request_bytes)
        try:
            request = GenerateRequest.model_validate_json(request_json)
        except ValidationError as error:
            raise invalid_request(error) from None
        if request.v > PROTOCOL_VERSION:
            raise ProtocolError(
                f"The request is of protocol {request.v}; this worker knows {PROTOCOL_VERSION}."
            )
        return request
