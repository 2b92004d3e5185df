"""One job's stream as the reader sees it: every token exactly once, in order, then the end.

:class:`StreamState` is sans-IO: it is fed events (live, perhaps lost, doubled or late) and records
(replayed from the log) and says what is new. ``token_stream.py`` gives it threads and sockets.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from pagefleet.api.errors import FleetError, JobDead, JobFailed, ProtocolError
from pagefleet.api.job_record import JobRecord
from pagefleet.api.messages import (
    AcceptedEvent,
    ChoiceResult,
    EndedEvent,
    JobResult,
    JobState,
    LogEntry,
    StreamEvent,
    TokenLogprobs,
    parse_event,
)
from pagefleet.api.requests import invalid_request

SILENCE_S: Final = 2.0
"""After this long without an event, a reader looks into the log."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that became readable together. ``offset`` is the index of the first of them."""

    choice: int
    offset: int
    token_ids: list[int]
    text: str
    finish_reason: str | None = None
    logprobs: list[TokenLogprobs] | None = None
    """One for each token, where the request asked for them."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """With the first token of choice 0, where the request asked for them."""


class _Choice:
    """What has been seen of one choice."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprobs] = []
        self.stop_reason: str | int | None = None


class StreamState:
    """Dedupes by token index, notices gaps, knows the end.

    Args:
        after: how many tokens of each choice the reader has already; no chunk repeats them.
    """

    def __init__(self, job_id: str, *, after: int = 0) -> None:
        self.job_id = job_id
        self.wants_replay = False
        self.num_prompt_tokens: int | None = None
        self.attempts = 0
        self._after = after
        self._choices: defaultdict[int, _Choice] = defaultdict(_Choice)
        self._chunks: deque[Chunk] = deque()
        self._prompt_logprobs: list[TokenLogprobs] | None = None
        self._end: EndedEvent | None = None

    @property
    def ended(self) -> bool:
        """The job is in a final state and every token of its log has been seen."""
        return self._end is not None and all(
            len(self._choices[index].token_ids) >= count for index, count in enumerate(self._end.num_tokens)
        )

    @property
    def error(self) -> FleetError | None:
        """What a reader should raise at the end; None for an end that is an answer."""
        if self._end is None or self._end.state in (JobState.DONE, JobState.CANCELLED):
            return None
        if self._end.error is not None:
            return self._end.error.to_error(self.job_id)
        if "deadline" in self._end.finish_reasons:
            return None
        failure = JobDead if self._end.state is JobState.DEAD else JobFailed
        return failure(f"Job {self.job_id} failed without a reason.", job_id=self.job_id)

    def pop(self) -> Chunk | None:
        return self._chunks.popleft() if self._chunks else None

    def feed_line(self, kind: str, body: str) -> None:
        """One live event as it came over the channel."""
        try:
            event = parse_event(kind, body)
        except ValidationError as error:
            raise ProtocolError(
                f"Job {self.job_id} sent an unreadable event: {invalid_request(error).message}",
                job_id=self.job_id,
            ) from None
        if event is not None:
            self.feed(event)

    def feed(self, event: StreamEvent) -> None:
        if isinstance(event, LogEntry):
            self._feed_entry(event)
        elif isinstance(event, AcceptedEvent):
            self.num_prompt_tokens, self.attempts = event.num_prompt_tokens, event.attempt
        elif self._end is None:
            self._end = event
            self.wants_replay = not self.ended

    def feed_record(self, record: JobRecord) -> None:
        """Hash and log, read together: fills every gap and finds an end that was missed."""
        self.num_prompt_tokens, self.attempts = record.num_prompt_tokens, record.attempts
        for entry in record.entries:
            self._feed_entry(entry)
        # Also where the log itself has a gap: reading it again at once would not fill it.
        self.wants_replay = False
        if record.state.is_final and self._end is None:
            self._end = record.ended_event()

    def result(self, model: str) -> JobResult:
        """The outcome as far as it has been seen."""
        end = self._end
        num_choices = max(self._choices, default=0) + 1 if end is None else len(end.num_tokens)
        return JobResult(
            job_id=self.job_id,
            model=model,
            state=JobState.RUNNING if end is None else end.state,
            choices=[self._result_of(index) for index in range(num_choices)],
            prompt_logprobs=self._prompt_logprobs,
            num_prompt_tokens=self.num_prompt_tokens,
            attempts=self.attempts,
            error=None if end is None else end.error,
        )

    def _feed_entry(self, entry: LogEntry) -> None:
        choice = self._choices[entry.choice]
        skip = len(choice.token_ids) - entry.offset
        if skip < 0:
            self.wants_replay = True
            return
        if skip >= len(entry.token_ids):
            return
        choice.token_ids += entry.token_ids[skip:]
        choice.texts += entry.texts[skip:]
        choice.logprobs += (entry.logprobs or [])[skip:]
        self._prompt_logprobs = entry.prompt_logprobs or self._prompt_logprobs
        choice.stop_reason = entry.stop_reason
        self._give(entry, max(skip, self._after - entry.offset))

    def _give(self, entry: LogEntry, skip: int) -> None:
        token_ids, text = entry.token_ids[skip:], "".join(entry.texts[skip:])
        if token_ids:
            logprobs = None if entry.logprobs is None else entry.logprobs[skip:]
            offset = entry.offset + skip
            prompt_logprobs = entry.prompt_logprobs if offset == 0 else None
            self._chunks.append(
                Chunk(entry.choice, offset, token_ids, text, entry.finish_reason, logprobs, prompt_logprobs)
            )

    def _result_of(self, index: int) -> ChoiceResult:
        choice = self._choices[index]
        return ChoiceResult(
            index=index,
            token_ids=list(choice.token_ids),
            text="".join(choice.texts),
            finish_reason=None if self._end is None else self._end.finish_reasons[index],
            stop_reason=choice.stop_reason,
            logprobs=choice.logprobs or None,
        )
