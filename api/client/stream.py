"""StreamState: one job's stream as its reader sees it: every token exactly once, in order, then the end.

It does no I/O. Its inputs are live events, which may be lost, doubled or late, and records read from the log.
Its output is the chunks that the reader does not have yet.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from pagefleet.api.contract.errors import FleetError, JobDead, JobFailed, ProtocolError
from pagefleet.api.contract.messages import (
    TOKENS,
    AcceptedEvent,
    ChoiceResult,
    EndedEvent,
    JobResult,
    JobState,
    LogEntry,
    Reading,
    StreamEvent,
    TokenLogprobs,
    parse_event,
)
from pagefleet.api.contract.plain_entry import PlainEntry, parse_plain_entry
from pagefleet.api.contract.requests import invalid_request
from pagefleet.api.protocol.job_record import JobRecord, LogPosition

SILENCE_S: Final = 2.0
"""After this time without an event, a stream reads the log."""


@dataclass(slots=True)
class Chunk:
    """Tokens of one choice that became readable together. ``offset`` is the index of the first one."""

    # Not frozen: it would take five times as long to create one, for each token of each stream.

    choice: int
    offset: int
    token_ids: list[int]
    text: str
    finish_reason: str | None = None
    logprobs: list[TokenLogprobs] | None = None
    """One for each token, if the request asked for them."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """With the first token of each choice, if the request asked for them."""
    prompt_token_ids: list[int] | None = None
    """With the first token of each choice, if the request asked for them."""
    text_offset: int = 0
    """How many characters of the choice's text precede this chunk."""

    @property
    def end(self) -> int:
        """How many tokens of the choice the reader has with this chunk: an ``after`` for ``attach``."""
        return self.offset + len(self.token_ids)


class _Choice:
    """What the stream has received of one choice."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_chars = 0
        self.token_ids: list[int] = []
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprobs] = []
        self.stop_reason: str | int | None = None


class StreamState:
    """Removes duplicates by token index, detects gaps and knows the end.

    Args:
        after: how many tokens of each choice the reader already has, one number for all choices or one for
            each. The chunks do not repeat them.
        keep: whether :meth:`result` will be called. If not, only the tokens' counts are kept.
        num_choices: as far as it is known.
        reading: how :meth:`result` reads the texts as messages, if the request has messages. The job's record
            has it too.
    """

    def __init__(
        self,
        job_id: str,
        *,
        after: int | Sequence[int] = 0,
        keep: bool = True,
        num_choices: int = 1,
        reading: Reading | None = None,
    ) -> None:
        self.job_id = job_id
        self.wants_replay = False
        self._num_entries, self._num_choices = 0, num_choices
        self.num_prompt_tokens: int | None = None
        self.num_cached_tokens = 0
        self.attempts = 0
        self._after = after
        self._keep = keep
        self._reading = reading
        self._choices: defaultdict[int, _Choice] = defaultdict(_Choice)
        self._chunks: deque[Chunk] = deque()
        self._prompt_logprobs: list[TokenLogprobs] | None = None
        self._prompt_token_ids: list[int] | None = None
        self._end: EndedEvent | None = None

    @property
    def position(self) -> LogPosition:
        """How much of the log has been received. Each event is one item of it."""
        return LogPosition(self._num_entries, self._num_choices)

    @property
    def ended(self) -> bool:
        """Whether the job is in a final state and every token of its log has been received."""
        return self._end is not None and self._has_seen(self._end.num_tokens)

    @property
    def error(self) -> FleetError | None:
        """What a reader raises at the end. None if the job ended with an answer, or was cancelled."""
        if self._end is None or self._end.state in (JobState.DONE, JobState.CANCELLED):
            return None
        if self._end.error is not None:
            return self._end.error.to_error(self.job_id)
        if "deadline" in self._end.finish_reasons:
            return None
        failure = JobDead if self._end.state is JobState.DEAD else JobFailed
        return failure(f"Job {self.job_id} failed without a reason.", job_id=self.job_id)

    @property
    def num_tokens(self) -> int:
        """Received tokens of all choices together."""
        return sum(choice.num_tokens for choice in self._choices.values())

    @property
    def state(self) -> JobState | None:
        """The final state. None until it is known."""
        return None if self._end is None else self._end.state

    def finish(self, choice: int) -> tuple[str | None, str | int | None]:
        """Return the finish reason and the stop reason of a choice of an ended job."""
        reasons = [] if self._end is None else self._end.finish_reasons
        reason = reasons[choice] if choice < len(reasons) else None
        return reason, self._choices[choice].stop_reason

    def text_of(self, choice: int, num_tokens: int) -> str:
        """Return the text of a choice's first tokens, as far as they have arrived. Needs ``keep``."""
        return "".join(self._choices[choice].texts[:num_tokens])

    def pop(self) -> Chunk | None:
        return self._chunks.popleft() if self._chunks else None

    def feed_line(self, kind: str, body: str) -> None:
        """Process one line of a channel.

        Raises:
            ProtocolError: it cannot be parsed.
        """
        plain = parse_plain_entry(body) if kind == TOKENS else None
        if plain is not None:
            self._feed_plain(plain)
            return
        try:
            event = parse_event(kind, body)
        except ValidationError as error:
            raise ProtocolError(
                f"Job {self.job_id} sent an event that cannot be read: "
                f"{invalid_request(error, with_value=False).message}",
                job_id=self.job_id,
            ) from None
        if event is not None:
            self.feed(event)

    def feed(self, event: StreamEvent) -> None:
        if isinstance(event, LogEntry):
            self._feed_entry(event)
        elif isinstance(event, AcceptedEvent):
            self.num_prompt_tokens, self.attempts = event.num_prompt_tokens, event.attempt
            self.num_cached_tokens = self.num_cached_tokens or event.num_cached_tokens
        elif self._end is None:
            self._end = event
            self.wants_replay = not self.ended

    def feed_record(self, record: JobRecord) -> None:
        """Process state and log, read together. They fill gaps, and contain an end that was missed."""
        first, asked_choices = record.after or LogPosition(0, record.num_choices)
        if asked_choices != record.num_choices:
            self._num_entries, self._num_choices, self.wants_replay = 0, record.num_choices, True
            return
        self.num_prompt_tokens, self.attempts = record.num_prompt_tokens, record.attempts
        self.num_cached_tokens = record.num_cached_tokens
        if self._keep and record.after is None:
            self._reading = self._reading or record.chat_reading
        for entry in record.entries:
            self._feed_entry(entry)
        self._num_entries, self._num_choices = first + len(record.entries), record.num_choices
        # A gap in the whole log would still be there after reading it again. The rest of a log may have a
        # gap because the items before it were compacted, or a server that lost a second has other items.
        self.wants_replay = first > 0 and not self._has_seen(record.num_tokens)
        if self.wants_replay:
            self._num_entries = 0
        if record.state.is_final and self._end is None:
            self._end = record.ended_event()

    def _has_seen(self, num_tokens: Sequence[int]) -> bool:
        return all(self._choices[index].num_tokens >= count for index, count in enumerate(num_tokens))

    def result(self, model: str) -> JobResult:
        """Return everything that has been received."""
        end = self._end
        num_choices = max(self._choices, default=0) + 1 if end is None else len(end.num_tokens)
        return JobResult(
            job_id=self.job_id,
            model=model,
            state=JobState.RUNNING if end is None else end.state,
            choices=[self._result_of(index) for index in range(num_choices)],
            prompt_logprobs=self._prompt_logprobs,
            prompt_token_ids=self._prompt_token_ids,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            attempts=self.attempts,
            error=None if end is None else end.error,
        )

    def _feed_plain(self, entry: PlainEntry) -> None:
        """Does what :meth:`_feed_entry` does for the next tokens of a choice, in less time."""
        index, offset, token_ids = entry.get("choice", 0), entry["offset"], entry["token_ids"]
        choice = self._choices[index]
        if offset != choice.num_tokens or offset < self._num_to_skip(index) or not token_ids:
            self._feed_entry(LogEntry(**entry))
            return
        texts = entry["texts"]
        text, num_chars = "".join(texts), choice.num_chars
        self._num_entries += 1
        choice.num_tokens = offset + len(token_ids)
        choice.num_chars = num_chars + len(text)
        choice.stop_reason = None
        if self._keep:
            choice.token_ids += token_ids
            choice.texts += texts
        of_prompt = (self._prompt_logprobs, self._prompt_token_ids) if offset == 0 else (None, None)
        self._chunks.append(Chunk(index, offset, token_ids, text, None, None, *of_prompt, num_chars))

    def _feed_entry(self, entry: LogEntry) -> None:
        choice = self._choices[entry.choice]
        skip = choice.num_tokens - entry.offset
        if skip < 0:
            self.wants_replay = True
            return
        if skip >= len(entry.token_ids):
            return
        # An event that overlaps with another is not one item of the log: its items must be counted anew.
        self._num_entries = 0 if skip else self._num_entries + 1
        num_chars, start = choice.num_chars, choice.num_tokens
        choice.num_tokens = entry.offset + len(entry.token_ids)
        choice.num_chars += sum(map(len, entry.texts[skip:]))
        self._prompt_logprobs = entry.prompt_logprobs or self._prompt_logprobs
        self._prompt_token_ids = entry.prompt_token_ids or self._prompt_token_ids
        choice.stop_reason = entry.stop_reason
        if self._keep:
            choice.token_ids += entry.token_ids[skip:]
            choice.texts += entry.texts[skip:]
            choice.logprobs += (entry.logprobs or [])[skip:]
        skipped = max(start, self._num_to_skip(entry.choice)) - entry.offset
        self._add_chunk(entry, skipped, num_chars + sum(map(len, entry.texts[skip:skipped])))

    def _num_to_skip(self, choice: int) -> int:
        if isinstance(self._after, int):
            return self._after
        return self._after[choice] if choice < len(self._after) else 0

    def _add_chunk(self, entry: LogEntry, skip: int, text_offset: int) -> None:
        token_ids, text = entry.token_ids[skip:], "".join(entry.texts[skip:])
        if token_ids:
            logprobs = None if entry.logprobs is None else entry.logprobs[skip:]
            offset = entry.offset + skip
            self._chunks.append(
                Chunk(
                    entry.choice,
                    offset,
                    token_ids,
                    text,
                    entry.finish_reason,
                    logprobs,
                    # A log contains them once, with the first token of the first choice.
                    self._prompt_logprobs if offset == 0 else None,
                    self._prompt_token_ids if offset == 0 else None,
                    text_offset,
                )
            )

    def _result_of(self, index: int) -> ChoiceResult:
        choice = self._choices[index]
        result = ChoiceResult(
            index=index,
            token_ids=list(choice.token_ids),
            text="".join(choice.texts),
            finish_reason=None if self._end is None else self._end.finish_reasons[index],
            stop_reason=choice.stop_reason,
            logprobs=choice.logprobs or None,
        )
        if self._reading is None:
            return result
        # Imported here because it imports all notations of tool calls, which not every service needs.
        from pagefleet.api.chat.message_reader import with_message

        return with_message(result, self._reading, self.job_id)
