"""JobRecord: a job's hash and log, read together at one moment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import ProtocolError
from pagefleet.api.contract.messages import (
    MAX_TTL_S,
    ChoiceResult,
    EndedEvent,
    ErrorInfo,
    Fingerprint,
    GenerateRequest,
    JobResult,
    JobState,
    LogEntry,
    Reading,
)
from pagefleet.api.contract.sampling import MAX_CHOICES

_MODEL_FIRST: Final = '{"model":"'
_DECODER: Final = json.JSONDecoder()
TIMES: Final = ("enqueued_at", "claimed_at", "first_token_at", "ended_at")


class LogPosition(NamedTuple):
    """A reader's position in a job's log, so that it reads only what follows.

    ``num_entries``: entries that it has read. ``num_choices``: the job's choices, as far as it knows.
    """

    num_entries: int = 0
    num_choices: int = 1


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as read: typed access to the fields that ``scripts/prelude.lua`` lists.

    ``after``: if set, the request was not read, and of the log only what follows this position.
    """

    job_id: str
    fields: Mapping[str, str]
    entries: Sequence[LogEntry] = field(default=())
    after: LogPosition | None = None

    def check(self) -> None:
        """Parse every field once. Raise ValueError, KeyError or TypeError if one cannot be read."""
        if not 1 <= self.num_choices <= MAX_CHOICES:
            raise ValueError("num_choices")
        if not 0 <= (self.ttl_ms or 0) <= MAX_TTL_S * 1000:
            raise ValueError("ttl")
        _ = (self.state, self.queue, self.num_tokens, self.num_prompt_tokens, self.attempts, self.error)
        _ = self.num_cached_tokens
        _ = self.fields["request"]
        _ = self.times

    @property
    def state(self) -> JobState:
        return JobState(self.fields["state"])

    @property
    def queue(self) -> str:
        return self.fields["queue"]

    @property
    def num_choices(self) -> int:
        return int(self.fields.get("num_choices", 1))

    @property
    def num_tokens(self) -> list[int]:
        """Tokens in the log, by choice."""
        return [int(self.fields.get(f"n:{choice}", 0)) for choice in range(self.num_choices)]

    @property
    def has_whole_log(self) -> bool:
        """Whether the entries contain every token that the hash counts, each once and in order."""
        lengths = dict.fromkeys(range(self.num_choices), 0)
        for entry in self.entries:
            if entry.offset != lengths.get(entry.choice):
                return False
            lengths[entry.choice] += len(entry.token_ids)
        return list(lengths.values()) == self.num_tokens

    @property
    def num_prompt_tokens(self) -> int | None:
        value = self.fields.get("num_prompt_tokens")
        return None if value is None else int(value)

    @property
    def num_cached_tokens(self) -> int:
        return int(self.fields.get("num_cached_tokens", 0))

    @property
    def attempts(self) -> int:
        return int(self.fields.get("attempts", 0))

    @property
    def error(self) -> ErrorInfo | None:
        text = self.fields.get("error")
        return None if text is None else ErrorInfo.model_validate_json(text)

    @property
    def was_refused(self) -> bool:
        """Whether it waits, or waited until its end, for a worker with the weights of its tokens."""
        return "refused" in self.fields

    @property
    def times(self) -> dict[str, float | None]:
        """Seconds since the epoch by the server's clock; None for what has not happened."""
        return {name: self._seconds(name) for name in TIMES}

    @property
    def seconds_open(self) -> float | None:
        """Seconds from the submit to the end; None if it has not ended."""
        begin, end = self._seconds("enqueued_at"), self._seconds("ended_at")
        return None if begin is None or end is None else end - begin

    @property
    def tenant(self) -> str | None:
        return self.fields.get("tenant")

    @property
    def clients(self) -> list[str]:
        """Ids of its readers; the job is cancelled when none of them is alive. [] if it is detached."""
        return self.fields.get("clients", "").split()

    @property
    def canvas(self) -> dict[str, Any]:
        """Celery callbacks of a bare message, with the ids they need; {} if there are none to call."""
        try:
            stored = json.loads(self.fields.get("canvas", "{}"))
        except (ValueError, RecursionError):
            return {}
        return stored if isinstance(stored, dict) else {}

    @property
    def has_expired(self) -> bool:
        """Whether it was cancelled because it was not started in time."""
        return "expired" in self.fields

    @property
    def was_called_back(self) -> bool:
        """Whether a worker has called the callbacks, or has started to."""
        return "callbacks" in self.fields

    @property
    def priority(self) -> int:
        return min(9, max(0, int(self.fields.get("priority", 5))))

    @property
    def fingerprints(self) -> list[Fingerprint]:
        """The engines that computed it, in order, without consecutive repetitions; [] if unreadable."""
        try:
            stored = json.loads(self.fields.get("fingerprints", "[]"))
            return [Fingerprint.model_validate(each) for each in stored]
        except (ValueError, TypeError, RecursionError):
            return []

    @property
    def waits_with_deadline(self) -> bool:
        """Whether the job is queued and has a deadline, which may have passed."""
        return self.state is JobState.QUEUED and "deadline" in self.fields

    @property
    def ttl_ms(self) -> int | None:
        """The job's own TTL, or None."""
        value = self.fields.get("ttl")
        return None if value is None else int(value)

    @property
    def ended_by(self) -> str | None:
        """The job's finish reason: "error", "deadline" or "cancelled" if a choice has it, else the first."""
        reasons = [self.finish_reason(choice) for choice in range(self.num_choices)]
        cut = (reason for reason in ("error", "deadline", "cancelled") if reason in reasons)
        return next(cut, reasons[0])

    def finish_reason(self, choice: int) -> str | None:
        return self.fields.get(f"fin:{choice}")

    @property
    def model(self) -> str:
        """The requested model, also from a request of another version; '' if it cannot be read."""
        try:
            request = self.fields["request"]
            if request.startswith(_MODEL_FIRST):
                # As pagefleet writes it. A long prompt takes milliseconds to parse.
                return str(_DECODER.raw_decode(request, len(_MODEL_FIRST) - 1)[0])
            return str(json.loads(request)["model"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""

    @property
    def chat_reading(self) -> Reading | None:
        """How to read the answer as a message; None if the request has no messages or cannot be read."""
        try:
            request = json.loads(self.fields["request"])
            if request.get("messages") is None:
                return None
            return Reading.model_validate(request.get("reading") or {})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    @property
    def served_model(self) -> str:
        """The canonical name of the model, from the job's queue; does not need the request."""
        return keys.parse_queue(self.queue).model

    @property
    def lane(self) -> str:
        return keys.parse_queue(self.queue).lane

    def request(self) -> GenerateRequest:
        """Parse the request. Raise ProtocolError if it cannot be read."""
        try:
            return GenerateRequest.model_validate_json(self.fields["request"])
        except ValidationError:
            raise ProtocolError(
                f"The request of job {self.job_id} cannot be read.", job_id=self.job_id
            ) from None

    def ended_event(self) -> EndedEvent:
        """Return the event that was published when the job ended. The state must be final."""
        return EndedEvent(
            state=self.state,
            num_tokens=self.num_tokens,
            finish_reasons=[self.finish_reason(choice) for choice in range(self.num_choices)],
            error=self.error,
        )

    def result(self) -> JobResult:
        """Return the job's outcome, from the hash and the log alone."""
        return JobResult(
            job_id=self.job_id,
            model=self.model,
            state=self.state,
            choices=[self._choice(index) for index in range(self.num_choices)],
            prompt_logprobs=next((e.prompt_logprobs for e in self.entries if e.prompt_logprobs), None),
            prompt_token_ids=next((e.prompt_token_ids for e in self.entries if e.prompt_token_ids), None),
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            attempts=self.attempts,
            worker=self.fields.get("owner"),
            fingerprints=self.fingerprints,
            error=self.error,
            enqueued_at=self._seconds("enqueued_at"),
            claimed_at=self._seconds("claimed_at"),
            first_token_at=self._seconds("first_token_at"),
            ended_at=self._seconds("ended_at"),
        )

    def _choice(self, index: int) -> ChoiceResult:
        entries = [entry for entry in self.entries if entry.choice == index]
        stop_reasons = [entry.stop_reason for entry in entries if entry.stop_reason is not None]
        return ChoiceResult(
            index=index,
            token_ids=[token for entry in entries for token in entry.token_ids],
            text="".join(text for entry in entries for text in entry.texts),
            finish_reason=self.finish_reason(index),
            stop_reason=stop_reasons[-1] if stop_reasons else None,
            logprobs=[each for entry in entries for each in entry.logprobs or ()] or None,
        )

    def _seconds(self, name: str) -> float | None:
        value = self.fields.get(name)
        return None if value is None else int(value) / 1000
