"""InMemoryFleet: the fleet's fake for your own tests, on the same base class as the real client.

::

    fleet = InMemoryFleet(reply=lambda request: "Hello back")
    assert fleet.generate("Hello").text() == "Hello back"

Requests are checked by the same rules and streams end in the same ways; only the tokens are made up: one
for each word of the reply.
"""

from __future__ import annotations

import itertools
import queue
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Never

from pagefleet.api.client.events import LiveEvent, Resync
from pagefleet.api.client.job_options import DEFAULT_IDLE_TIMEOUT_S, check_unknown
from pagefleet.api.client.questions import Answer, PendingQuestion
from pagefleet.api.client.stream import StreamState
from pagefleet.api.client.synchronous.fleet import Fleet
from pagefleet.api.client.synchronous.token_stream import Source, TokenStream
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.contract.fleet_status import FleetStatus, QueueStatus
from pagefleet.api.contract.messages import (
    AcceptedEvent,
    ErrorInfo,
    Fingerprint,
    GenerateRequest,
    JobState,
    LogEntry,
    Logprob,
    ModelCard,
    TokenLogprobs,
    WorkerStatus,
)
from pagefleet.api.contract.model_cards import CardIndex
from pagefleet.api.protocol.job_errors import job_not_found
from pagefleet.api.protocol.job_record import JobRecord, LogPosition
from pagefleet.api.protocol.operation_types import Submitted
from pagefleet.api.protocol.prepared import PreparedRequest, check_submitted, job_exists, prepare

Reply = Callable[[GenerateRequest], str]

_WORD: Final = re.compile(r"\s*\S+\s*$|\s*\S+|\s+")


def fake_card(name: str = "fake", *, max_model_len: int = 4096, max_queue_depth: int = 1000) -> ModelCard:
    """A model card for tests."""
    fingerprint = Fingerprint(weights="fake", tokenizer="words", dtype="none", backend="fake", version="0")
    return ModelCard(
        name=name,
        max_model_len=max_model_len,
        vocab_size=2**31,
        max_queue_depth=max_queue_depth,
        fingerprint=fingerprint,
    )


class InMemoryFleet(Fleet):
    """A fleet in this process: no Redis, no worker, no model.

    Args:
        reply: the text that answers a request; a raised ``FleetError`` fails the job with it.
        models: the cards it knows; one model called ``fake`` by default.
        paused: queue the jobs and answer none until :meth:`run` is called.
    """

    def __init__(
        self,
        reply: Reply = lambda request: "ok",
        *,
        models: list[ModelCard] | None = None,
        paused: bool = False,
    ) -> None:
        self._reply = reply
        self._cards = CardIndex(models if models is not None else [fake_card()])
        self._paused = paused
        self._jobs: dict[str, _Job] = {}
        self._seeds = itertools.count(1)
        self._words: dict[str, int] = {}

    def run(self) -> None:
        """Answers every queued job, in the order of their submission, and goes on answering."""
        self._paused = False
        for job in self._jobs.values():
            job.run(self._reply)

    def open(self) -> None:
        """Nothing is to connect."""

    def attach(
        self,
        job_id: str,
        *,
        after: int | Sequence[int] = 0,
        idle_timeout: float | None = DEFAULT_IDLE_TIMEOUT_S,
        keep: bool = True,
        **unknown: Never,
    ) -> TokenStream:
        check_unknown("attach", unknown)
        job = self._job(job_id)
        state = StreamState(job_id, after=after, keep=keep)
        state.feed_record(job.record())
        return TokenStream(state, _JobSource(self, job), job.prepared.card.name, idle_timeout)

    def job(self, job_id: str, *, with_log: bool = True) -> JobRecord:
        record = self._job(job_id).record()
        return record if with_log else replace(record, entries=[])

    def cancel(self, job_id: str) -> bool:
        return self._job(job_id).cancel()

    def delete(self, job_id: str) -> None:
        self._job(job_id).cancel()
        del self._jobs[job_id]

    def models(self) -> list[ModelCard]:
        return list(self._cards.cards)

    def workers(self) -> list[WorkerStatus]:
        """There are none."""
        return []

    def card(self, model: str | None) -> ModelCard:
        return self._cards.resolve(model)

    def _ask(self, question: PendingQuestion) -> Answer:
        """A word is a token; its id is the order in which this fleet was asked for it."""
        asked, words = question.question, self._words
        if asked.token_ids is not None:
            known = list(words)
            return Answer(prompt="".join(known[each] for each in asked.token_ids if each < len(known)))
        texts = [asked.prompt or "", *(message.content for message in asked.messages or ())]
        found = [word for text in texts for word in _WORD.findall(text)]
        token_ids = [words.setdefault(word, len(words)) for word in found]
        return Answer(token_ids=token_ids, token_strs=found if asked.return_token_strs else None)

    def status(self) -> FleetStatus:
        queues = []
        for card in self._cards.cards:
            for lane in keys.LANES:
                name = keys.queue(card.name, lane)
                num_open = self._num_open(name)
                queues.append(QueueStatus(name, card.name, lane, num_open, num_open))
        return FleetStatus(self.models(), [], queues, [], [], 0)

    def close(self) -> None:
        """Nothing is held open."""

    def _start(
        self, job_id: str | None, fields: Mapping[str, Any], idle_timeout: float | None
    ) -> TokenStream:
        prepared = prepare(self._cards, job_id, fields, next(self._seeds))
        if prepared.job_id in self._jobs:
            if self._jobs[prepared.job_id].prepared.asked != prepared.asked:
                raise job_exists(prepared.job_id)
            return self.attach(prepared.job_id, idle_timeout=idle_timeout)
        check_submitted(self._room_for(prepared), prepared)
        job = self._jobs[prepared.job_id] = _Job(prepared)
        source = _JobSource(self, job)
        if not self._paused:
            job.run(self._reply)
        request = prepared.request
        state = StreamState(prepared.job_id, num_choices=request.sampling.n, reading=request.chat_reading)
        return TokenStream(state, source, prepared.card.name, idle_timeout)

    def _job(self, job_id: str) -> _Job:
        if job_id not in self._jobs:
            raise job_not_found(job_id)
        return self._jobs[job_id]

    def _room_for(self, prepared: PreparedRequest) -> Submitted:
        """What SUBMIT would say. A job of this fleet never expires: it counts what it may take until it is
        deleted."""
        limits, tenant = prepared.limits, prepared.request.tenant
        depth = self._num_open(prepared.queue)
        if depth >= limits.max_depth:
            return Submitted(False, depth=depth)
        mine = [job for job in self._jobs.values() if job.prepared.request.tenant == tenant is not None]
        num_choices = sum(
            job.num_choices for job in mine if job.prepared.queue == prepared.queue and not job.state.is_final
        )
        if tenant is not None and num_choices + prepared.request.sampling.n > limits.max_tenant_depth:
            return Submitted(False, tenant_depth=num_choices)
        num_bytes = sum(job.prepared.num_reserved_bytes for job in mine)
        if tenant is not None and num_bytes + prepared.num_reserved_bytes > limits.max_tenant_bytes:
            return Submitted(False, tenant_bytes=num_bytes)
        return Submitted(True)

    def _num_open(self, queue_name: str) -> int:
        jobs = [job for job in self._jobs.values() if job.prepared.queue == queue_name]
        return sum(not job.state.is_final for job in jobs)


class _Job:
    """What the server would hold of a job, and who listens."""

    def __init__(self, prepared: PreparedRequest) -> None:
        self.prepared = prepared
        self.state = JobState.QUEUED
        self.inboxes: list[queue.SimpleQueue[LiveEvent]] = []
        self.staying: set[int] = set()
        self._entries: list[LogEntry] = []
        self.num_choices = prepared.request.sampling.n
        self._reasons: dict[int, str] = {}
        self._error: ErrorInfo | None = None
        self._num_prompt_tokens: int | None = None
        self._enqueued_at = time.time()

    def run(self, reply: Reply) -> None:
        self.expire()
        if self.state.is_final:
            return
        request = self.prepared.request
        try:
            choices = [_WORD.findall(reply(request)) for _ in range(self.num_choices)]
        except FleetError as error:
            self._end(JobState.FAILED, "error", ErrorInfo.from_error(error))
            return
        self._num_prompt_tokens = _num_prompt_tokens(request)
        accepted = AcceptedEvent(num_prompt_tokens=self._num_prompt_tokens, attempt=1)
        self._tell(LiveEvent("a", accepted.model_dump_json()))
        for choice, words in enumerate(choices):
            self._reasons[choice] = "length" if len(words) >= request.sampling.max_tokens else "stop"
            for entry in _entries(request, choice, words, self._reasons[choice]):
                self._entries.append(entry)
                self._tell(LiveEvent("t", entry.to_json()))
        self._end(JobState.DONE, "stop", None)

    def cancel(self) -> bool:
        if self.state.is_final:
            return False
        self._end(JobState.CANCELLED, "cancelled", None)
        return True

    def leave(self, inbox: queue.SimpleQueue[LiveEvent]) -> None:
        """The last reader takes the job with it, unless it is detached."""
        if inbox not in self.inboxes:
            return
        self.inboxes.remove(inbox)
        if not self.inboxes and id(inbox) not in self.staying and not self.prepared.request.lives_alone:
            self.cancel()

    def expire(self) -> None:
        deadline_s = self.prepared.request.deadline_s
        late = deadline_s is not None and time.time() > self._enqueued_at + deadline_s
        if late and not self.state.is_final:
            self._end(JobState.FAILED, "deadline", None)

    def record(self) -> JobRecord:
        fields = {
            "state": self.state.value,
            "queue": self.prepared.queue,
            "request": self.prepared.request.model_dump_json(),
            "num_choices": str(self.num_choices),
            "enqueued_at": str(int(self._enqueued_at * 1000)),
        }
        deadline_s = self.prepared.request.deadline_s
        if deadline_s is not None:
            fields["deadline"] = str(int((self._enqueued_at + deadline_s) * 1000))
        if self._num_prompt_tokens is not None:
            fields |= {"num_prompt_tokens": str(self._num_prompt_tokens), "attempts": "1"}
        fields |= {f"n:{choice}": str(count) for choice, count in enumerate(self._num_tokens())}
        fields |= {f"fin:{choice}": reason for choice, reason in self._reasons.items()}
        if self._error is not None:
            fields["error"] = self._error.model_dump_json()
        return JobRecord(self.prepared.job_id, fields, list(self._entries))

    def _end(self, state: JobState, reason: str, error: ErrorInfo | None) -> None:
        self.state, self._error = state, error
        # A choice that has ended keeps its own reason.
        self._reasons = dict.fromkeys(range(self.num_choices), reason) | self._reasons
        self._tell(LiveEvent("e", self.record().ended_event().model_dump_json()))

    def _num_tokens(self) -> list[int]:
        return [sum(entry.choice == choice for entry in self._entries) for choice in range(self.num_choices)]

    def _tell(self, event: LiveEvent) -> None:
        for inbox in self.inboxes:
            inbox.put(event)


def _entries(request: GenerateRequest, choice: int, words: list[str], reason: str) -> Iterator[LogEntry]:
    """A word is a token, and there is no doubt about it."""
    sampling = request.sampling
    last = min(len(words), sampling.max_tokens) - 1
    for offset, word in enumerate(words[: last + 1]):
        certain = _certain(offset, word, sampling.logprobs or 0)
        yield LogEntry(
            choice=choice,
            offset=offset,
            token_ids=[offset],
            texts=[(request.prompt or "") + word if request.echo and offset == 0 else word],
            finish_reason=reason if offset == last else None,
            logprobs=None if sampling.logprobs is None else [certain],
            prompt_logprobs=_prompt_logprobs(request) if choice == offset == 0 else None,
        )


def _prompt_logprobs(request: GenerateRequest) -> list[TokenLogprobs] | None:
    num_top = request.sampling.prompt_logprobs
    words = _WORD.findall(request.prompt or "")
    return None if num_top is None else [_certain(*each, num_top) for each in enumerate(words[1:], 1)]


def _certain(token_id: int, word: str, num_top: int) -> TokenLogprobs:
    top = [Logprob(token_id=token_id, logprob=0.0, text=word)] if num_top else []
    return TokenLogprobs(token_id=token_id, logprob=0.0, text=word, rank=1, top=top)


def _num_prompt_tokens(request: GenerateRequest) -> int:
    if request.prompt_token_ids is not None:
        return len(request.prompt_token_ids)
    texts = [message.content for message in request.messages or ()] or [request.prompt or ""]
    return sum(len(_WORD.findall(text)) for text in texts)


class _JobSource(Source):
    def __init__(self, fleet: InMemoryFleet, job: _Job) -> None:
        self._fleet = fleet
        self._job = job
        self._inbox: queue.SimpleQueue[LiveEvent] = queue.SimpleQueue()
        job.inboxes.append(self._inbox)
        weakref.finalize(self, job.leave, self._inbox)

    def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        try:
            return self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def read(self, position: LogPosition) -> JobRecord | None:
        return self._job.record()

    def resubmit(self) -> bool:
        return False

    def expire(self) -> None:
        self._job.expire()

    def cancel(self) -> None:
        self._job.cancel()

    def delete(self) -> None:
        self._fleet.delete(self._job.prepared.job_id)

    def keep_running(self, keep: bool) -> None:
        if keep:
            self._job.staying.add(id(self._inbox))
        else:
            self._job.staying.discard(id(self._inbox))

    def leave(self, after_s: float = 0.0) -> None:
        if after_s:
            timer = threading.Timer(after_s, self._job.leave, (self._inbox,))
            timer.daemon = True
            timer.start()
        else:
            self._job.leave(self._inbox)

    def close(self) -> None:
        self.keep_running(True)
        self.leave()
