"""The types of the protocol's operations: a call of a script, its arguments and its parsed replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Generic, NamedTuple, TypeVar

T = TypeVar("T")

CLIENT_LEASE_S: Final = 10.0
"""A client without a heartbeat for this long is dead, and its jobs are cancelled unless they are detached."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One call of one script. ``parse`` turns the server's reply into the result."""

    script: str
    keys: Sequence[str]
    args: Sequence[str | int | float]
    parse: Callable[[Any], T]


class Submitted(NamedTuple):
    """The reply of SUBMIT. At most one of the fields after ``created`` is set, with the reason against it."""

    created: bool
    """False if the id exists or a limit is reached."""
    depth: int | None = None
    """Open jobs of the queue, if it is full."""
    tenant_depth: int | None = None
    """Open choices of the tenant in this queue, if there are too many."""
    tenant_bytes: int | None = None
    """Stored bytes of the tenant, if the job does not fit in addition."""
    is_other: bool = False
    """The id belongs to a job with another request."""
    is_deleted: bool = False
    """The job was deleted and must not be submitted again."""

    @property
    def exists(self) -> bool:
        """Whether a job with the same id and request exists, which the caller may attach to."""
        return self == Submitted(created=False)


class QueueMessage(NamedTuple):
    """A job's message and its ``task-sent`` event in kombu's format, which SUBMIT sends with the job."""

    list_name: str
    message: str
    event_channel: str
    event: str


class ClaimVerdict(StrEnum):
    CLAIMED = "claimed"
    MISSING = "missing"
    FINAL = "final"
    EARLY = "early"
    """A scheduled job that is not due."""
    ENDED = "ended"
    """By this call: it was cancelled, past its deadline or given up. The caller must close it."""
    ELSEWHERE = "elsewhere"
    """A live worker has it."""
    NO_LEASE = "no-lease"
    """The claiming worker has no lease."""
    REFUSED = "refused"
    """Its tokens come from other weights or another tokenizer; it waits."""
    UNREADABLE = "unreadable"


class Claim(NamedTuple):
    """The reply of CLAIM. ``REFUSED`` sets ``reason`` and ``retry_in_s``, ``CLAIMED`` all other fields."""

    verdict: ClaimVerdict
    epoch: int = 0
    attempt: int = 0
    solo: bool = False
    """The job may have killed its last worker: do not run its first prefill together with another job's."""
    request_json: str = ""
    num_tokens: tuple[int, ...] = ()
    """Tokens in the log, by choice."""
    reason: str = ""
    retry_in_s: float = 0.0
    taken_over: bool = False
    """Its last worker died while it ran the job."""
    waited_s: float = 0.0
    """Seconds since the job was enqueued."""


@dataclass(slots=True)
class StepBatch:
    """The arguments of one STEP as columns. An item is one choice's part; one without tokens asks for the
    job's flags."""

    keys: list[str] = field(default_factory=list)
    """The hash and the log of each item's job."""
    epochs: list[int] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)
    bases: list[int] = field(default_factory=list)
    """Index of each item's first token among those of its choice."""
    counts: list[int] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    """Each item's tokens: a :class:`LogEntry` as JSON. May be empty if there are none."""
    reasons: list[tuple[int, str]] = field(default_factory=list)
    """The finish reasons of items that end their choice. Items are counted from 1."""
    accepted: list[tuple[int, int, int]] = field(default_factory=list)
    """The numbers of prompt tokens and cached tokens of items whose job the engine has just accepted."""

    def __len__(self) -> int:
        return len(self.entries)


class StepStatus(StrEnum):
    OK = "ok"
    CANCEL = "cancel"
    """Applied; the worker must cancel the job."""
    DEADLINE = "deadline"
    """Applied; the job is past its deadline, and the worker must end it."""
    BEHIND = "behind"
    """Not applied: the log has fewer tokens than the worker assumed."""
    FENCED = "fenced"
    """Not applied: the worker no longer owns the job."""
    GONE = "gone"
    """The job does not exist."""
    UNREADABLE = "unreadable"


class StepReply(NamedTuple):
    """``num_tokens`` is the length of the log now. If ``BEHIND``, the worker sends again from there."""

    status: StepStatus
    num_tokens: int


StepReplies = list[int | StepReply]
"""One for each item of a STEP. A number means ``OK``: the length of the log now."""


class JobClosing(NamedTuple):
    """A job to close. ``ttl_ms`` is the job's own TTL, None for the default."""

    job_id: str
    queue: str
    result_json: str | None = None
    """Celery's result, None if it needs none."""
    ttl_ms: int | None = None


class CancelVerdict(StrEnum):
    ENDED = "ended"
    """By this call; the caller must close the job."""
    FLAGGED = "flagged"
    """The job's worker will end it."""
    RUNNING = "running"
    """Nothing was done, because only a queued job was to be cancelled."""
    FINAL = "final"
    MISSING = "missing"
    READ = "read"
    """Nothing was done, because the job has other readers or is detached."""


class DeleteVerdict(StrEnum):
    DELETED = "deleted"
    ENDED = "ended"
    """It was cancelled; the caller must close it, which removes it."""
    FLAGGED = "flagged"
    """Its worker will end it, which removes it."""
    MISSING = "missing"


NO_LIMIT: Final = 10**15


class Limits(NamedTuple):
    """Limits of SUBMIT: open jobs of the queue, the tenant's open choices in it, its stored bytes."""

    max_depth: int
    max_tenant_depth: int
    max_tenant_bytes: int = NO_LIMIT


class Charge(NamedTuple):
    """The API key that pays for a job, the tokens that it has reserved, and its limits per minute."""

    key_id: str
    num_reserved: int
    requests_per_minute: int | None
    tokens_per_minute: int

    def __str__(self) -> str:
        requests = "-" if self.requests_per_minute is None else self.requests_per_minute
        return f"{self.key_id} {self.num_reserved} {requests} {self.tokens_per_minute}"


class Schedule(NamedTuple):
    """The options of a Celery message in addition to its request."""

    not_before: int | None = None
    """The earliest start (``eta``, ``countdown``), in ms since the epoch."""
    start_by: int | None = None
    """The latest start (``expires``), in ms since the epoch."""
    canvas: str | None = None
    """Links and chain to call afterwards, as JSON."""


NO_SCHEDULE: Final = Schedule()
