"""Finding: what one check saw, how bad that is, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.protocol.job_store import JobStore


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    level: Level
    seen: str
    mend: str = ""

    @classmethod
    def ok(cls, check: str, seen: str) -> Finding:
        return cls(check, Level.OK, seen)

    @classmethod
    def warning(cls, check: str, seen: str, mend: str) -> Finding:
        return cls(check, Level.WARNING, seen, mend)

    @classmethod
    def wrong(cls, check: str, seen: str, mend: str) -> Finding:
        return cls(check, Level.WRONG, seen, mend)

    @classmethod
    def skipped(cls, check: str, seen: str, mend: str = "") -> Finding:
        return cls(check, Level.SKIPPED, seen, mend)


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined. ``store`` asks with short timeouts."""

    settings: FleetSettings
    store: JobStore
    model: str | None = None
    """The one to look for; by default the one that settings name."""
    role: str | None = None
    """What the Redis user should be able to do; by default any role will do."""


Check = Callable[[Patient], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class CheckGroup:
    """Checks that go together.

    Args:
        needs_redis: none of them has anything to say where the server does not answer.
        limit_s: what one of them may take.
    """

    checks: tuple[Check, ...]
    needs_redis: bool = False
    limit_s: float = 30.0
