"""Admission: from a message of the queue to a sequence in the engine, or to the reason why not."""

from __future__ import annotations

import functools
import logging
import queue
from collections.abc import Callable
from typing import Final

from pydantic import ValidationError

from pagefleet.api.errors import FleetError, JobFailed, QueueFull
from pagefleet.api.fleet import Prepared, prepare
from pagefleet.api.job_store import JobStore
from pagefleet.api.messages import GenerateRequest, ModelCard
from pagefleet.api.model_cards import CardIndex
from pagefleet.api.operations import Claim, ClaimVerdict, Submitted
from pagefleet.api.requests import invalid_request
from pagefleet.engine import LLMEngine
from pagefleet.workers.active_job import ActiveJob, JobMessage
from pagefleet.workers.engine_loop import EngineLoop
from pagefleet.workers.insist import Insist
from pagefleet.workers.loop_thread import LoopThread
from pagefleet.workers.prompt import engine_request
from pagefleet.workers.publisher import Publisher

logger = logging.getLogger(__name__)

_MAX_BATCH: Final = 64


class Admission:
    """Claims jobs (protocol line 4), many in one round trip, in a thread of its own.

    Args:
        draw_seed: the seed of a bare message without one.
        on_final: told of messages whose job has ended already; it must be closed.
        on_claimed: told of each job that is this worker's from now on.
    """

    def __init__(
        self,
        store: JobStore,
        worker_id: str,
        card: ModelCard,
        engine: LLMEngine,
        loop: EngineLoop,
        publisher: Publisher,
        insist: Insist,
        *,
        draw_seed: Callable[[], int],
        on_final: Callable[[JobMessage], None],
        on_claimed: Callable[[ActiveJob], None],
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._card = card
        self._cards = CardIndex([card])
        self._engine = engine
        self._loop = loop
        self._publisher = publisher
        self._insist = insist
        self._draw_seed = draw_seed
        self._on_final = on_final
        self._on_claimed = on_claimed
        self._messages: queue.SimpleQueue[JobMessage | None] = queue.SimpleQueue()
        self._stopping = False
        self._thread = LoopThread("admission", self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Messages that were not claimed yet stay unacknowledged."""
        self._stopping = True
        self._messages.put(None)
        self._thread.join()

    def put(self, message: JobMessage) -> None:
        self._messages.put(message)

    def _run(self) -> None:
        while not self._stopping:
            batch = self._next_batch()
            if not batch or self._stopping:
                continue
            job_ids = [message.job_id for message in batch]
            claims = self._insist(
                functools.partial(
                    self._store.claim, job_ids, self._worker_id, self._card.fingerprint.model_dump_json()
                )
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
                self._on_final(message)
            case ClaimVerdict.ELSEWHERE:
                message.dropped()
            case ClaimVerdict.NO_LEASE:
                message.returned()
            case ClaimVerdict.MISSING if message.bare_fields is None:
                logger.info("job %s: its message came, but the server knows no such job", message.job_id)
                message.dropped()
            case ClaimVerdict.MISSING:
                self._create(message)

    def _create(self, message: JobMessage) -> None:
        """A service sent the message itself, past submit: the same checks and limits apply here."""
        assert message.bare_fields is not None
        try:
            prepared = prepare(self._cards, message.job_id, message.bare_fields, self._draw_seed())
            submitted = self._insist(functools.partial(self._submit, prepared))
            if submitted.depth is not None:
                raise QueueFull(
                    f"The queue {prepared.queue} holds {submitted.depth} jobs, its limit.",
                    job_id=message.job_id,
                )
        except FleetError as error:
            message.rejected(error)
            return
        self._messages.put(message)

    def _submit(self, prepared: Prepared) -> Submitted:
        return self._store.submit(
            prepared.job_id,
            prepared.request,
            queue=prepared.queue,
            channel="",
            max_depth=self._card.max_queue_depth,
        )

    def _admit(self, message: JobMessage, claim: Claim) -> None:
        job = ActiveJob(message.job_id, claim.epoch, message)
        self._on_claimed(job)
        try:
            self._read_log(job, claim)
            request = self._parse(claim.request_json)
            to_compute = engine_request(job.job_id, request, job.token_ids, self._engine, self._card)
        except FleetError as error:
            self._publisher.fail(job, error)
            return
        except Exception as error:
            # A tokenizer or a template is not ours: what it throws at one job must not end the others'.
            logger.exception("job %s could not be prepared", job.job_id)
            self._publisher.fail(job, JobFailed(f"The worker could not prepare this request: {error}"))
            return
        job.num_prompt_tokens = len(list(to_compute.prompt_token_ids))
        self._publisher.take(job)
        self._loop.add(to_compute)
        message.started()

    def _read_log(self, job: ActiveJob, claim: Claim) -> None:
        """Raises: JobFailed where the log is not as long as the hash says."""
        (num_tokens,) = claim.num_tokens
        if not num_tokens:
            return
        record = self._insist(functools.partial(self._store.read, job.job_id))
        for entry in record.entries if record is not None else ():
            if entry.offset != len(job.token_ids):
                break
            job.token_ids += entry.token_ids
            job.texts += entry.texts
        job.num_sent = num_tokens
        if len(job.token_ids) != num_tokens:
            raise JobFailed(f"The log holds {len(job.token_ids)} tokens where {num_tokens} were counted.")

    def _parse(self, request_json: str) -> GenerateRequest:
        try:
            return GenerateRequest.model_validate_json(request_json)
        except ValidationError as error:
            raise invalid_request(error) from None
