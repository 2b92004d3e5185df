"""Finding: the result of one check and how to fix the problem that it found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.protocol.job_store import JobStore


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Args:
        check: the subject, as in "redis memory".
        message: what the check found.
        fix: the command or setting that fixes it.
    """

    check: str
    level: Level
    message: str
    fix: str = ""

    @classmethod
    def ok(cls, check: str, message: str) -> Finding:
        return cls(check, Level.OK, message)

    @classmethod
    def warning(cls, check: str, message: str, fix: str) -> Finding:
        return cls(check, Level.WARNING, message, fix)

    @classmethod
    def error(cls, check: str, message: str, fix: str) -> Finding:
        return cls(check, Level.ERROR, message, fix)

    @classmethod
    def skipped(cls, check: str, message: str, fix: str = "") -> Finding:
        return cls(check, Level.SKIPPED, message, fix)


@dataclass(frozen=True, slots=True)
class Target:
    """What to check.

    Args:
        store: the job store, with short timeouts.
        model: the model to look for; None: that of the settings.
        role: the role whose rights the Redis user must have; None: any role.
    """

    settings: FleetSettings
    store: JobStore
    model: str | None = None
    role: str | None = None


Check = Callable[[Target], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class CheckGroup:
    """Checks that run together.

    Args:
        needs_redis: leave the group out if the server does not answer.
        limit_s: time limit of each check.
    """

    checks: tuple[Check, ...]
    needs_redis: bool = False
    limit_s: float = 30.0
