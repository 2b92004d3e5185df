"""FakeJob: the state and the log of one job, and its readers."""

from __future__ import annotations

import time
from collections.abc import Callable

from pagefleet.api.client.events import LiveEvent
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.contract.messages import AcceptedEvent, ErrorInfo, JobState, LogEntry
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.prepared import PreparedRequest
from pagefleet.api.testing.fake_model import (
    Reply,
    entries_of,
    finish_reason_of,
    num_prompt_tokens,
    words_of,
)


class FakeReader:
    """One stream among the readers of its job.

    Args:
        deliver: called with each event of the job.
    """

    def __init__(self, job: FakeJob, deliver: Callable[[LiveEvent], None]) -> None:
        self._job = job
        self.deliver = deliver
        self.keeps_running = False
        """Whether the job continues after this reader has left."""
        job.readers.append(self)

    def leave(self) -> None:
        """Later calls do nothing."""
        if self in self._job.readers:
            self._job.remove(self)


class FakeJob:
    """What the server has of a job. It ends with its last reader, unless it is detached."""

    def __init__(self, prepared: PreparedRequest) -> None:
        self.prepared = prepared
        self.num_choices = prepared.request.sampling.n
        self.state = JobState.QUEUED
        self.readers: list[FakeReader] = []
        self._entries: list[LogEntry] = []
        self._reasons: dict[int, str] = {}
        self._error: ErrorInfo | None = None
        self._num_prompt_tokens: int | None = None
        self._enqueued_at = time.time()

    def run(self, reply: Reply) -> None:
        """Answer the job, if it has not ended."""
        self.expire()
        if self.state.is_final:
            return
        request = self.prepared.request
        try:
            choices = [words_of(reply(request)) for _ in range(self.num_choices)]
        except FleetError as error:
            self._end(JobState.FAILED, "error", ErrorInfo.from_error(error))
            return
        self._num_prompt_tokens = num_prompt_tokens(request)
        accepted = AcceptedEvent(num_prompt_tokens=self._num_prompt_tokens, attempt=1)
        self._publish(LiveEvent("a", accepted.model_dump_json()))
        for choice, words in enumerate(choices):
            self._reasons[choice] = finish_reason_of(request, words)
            for entry in entries_of(request, choice, words):
                self._entries.append(entry)
                self._publish(LiveEvent("t", entry.to_json()))
        self._end(JobState.DONE, "stop", None)

    def cancel(self) -> bool:
        """Return False if the job had ended already."""
        if self.state.is_final:
            return False
        self._end(JobState.CANCELLED, "cancelled", None)
        return True

    def remove(self, reader: FakeReader) -> None:
        self.readers.remove(reader)
        if not self.readers and not reader.keeps_running and not self.prepared.request.is_detached:
            self.cancel()

    def expire(self) -> None:
        """End the job if its deadline has passed."""
        deadline_s = self.prepared.request.deadline_s
        is_late = deadline_s is not None and time.time() > self._enqueued_at + deadline_s
        if is_late and not self.state.is_final:
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
        fields |= {f"n:{choice}": str(self._num_tokens(choice)) for choice in range(self.num_choices)}
        fields |= {f"fin:{choice}": reason for choice, reason in self._reasons.items()}
        if self._error is not None:
            fields["error"] = self._error.model_dump_json()
        return JobRecord(self.prepared.job_id, fields, list(self._entries))

    def _end(self, state: JobState, reason: str, error: ErrorInfo | None) -> None:
        self.state, self._error = state, error
        # A choice that has ended keeps its own reason.
        self._reasons = dict.fromkeys(range(self.num_choices), reason) | self._reasons
        self._publish(LiveEvent("e", self.record().ended_event().model_dump_json()))

    def _num_tokens(self, choice: int) -> int:
        return sum(entry.choice == choice for entry in self._entries)

    def _publish(self, event: LiveEvent) -> None:
        for reader in self.readers:
            reader.deliver(event)
