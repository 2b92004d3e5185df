"""Run every check; a check that hangs or fails becomes a finding."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Final

import redis

from pagefleet.api.config.extras import missing_extras, pip_command
from pagefleet.api.contract.errors import FleetError, RedisUnavailable
from pagefleet.api.operate.doctor.finding import Check, CheckGroup, Finding, Level, Target
from pagefleet.api.operate.doctor.groups import FLEET, PROCESS, REACH, SERVER
from pagefleet.api.operate.doctor.server import REDIS, no_answer

ENTRY_POINTS: Final = "pagefleet.doctor"
_REPORT_IT: Final = "fix the cause in the message; if there is none, report a bug"


def run_checks(target: Target) -> Iterator[Finding]:
    """Yield the findings of our checks, then those of other packages.

    Checks that need Redis are left out as soon as Redis does not answer.
    """
    answers = True
    for group in (PROCESS, REACH, SERVER, FLEET):
        if group.needs_redis and not answers:
            continue
        for finding in _run(group, target):
            answers = answers and not (finding.check == REDIS and finding.level is Level.ERROR)
            yield finding
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda each: each.name):
        if missing := missing_extras(entry):
            yield Finding.skipped(entry.name, f"not installed; to install it: {pip_command(missing)}")
        else:
            yield from _run(entry.load(), target)


def _run(group: CheckGroup, target: Target) -> Iterator[Finding]:
    for check in group.checks:
        findings = _bounded(check, target, group.limit_s)
        yield from findings
        if any(finding.check == REDIS and finding.level is Level.ERROR for finding in findings):
            return  # the other checks of the group would wait for the same server


def _bounded(check: Check, target: Target, limit_s: float) -> list[Finding]:
    """Return the findings of one check, or an error after ``limit_s``: resolving a name has no timeout."""
    name = check.__name__.replace("_", " ").strip()
    found: list[Finding] = []
    done = threading.Event()

    def run() -> None:
        try:
            found.extend(check(target))
        except (RedisUnavailable, redis.ConnectionError, redis.TimeoutError) as error:
            found.append(no_answer(error))
        except (FleetError, redis.RedisError, OSError) as error:
            found.append(Finding.error(name, f"the check failed: {error}".rstrip("."), _REPORT_IT))
        except Exception as error:  # noqa: BLE001
            # Without a finding, a broken check would look like a successful one.
            found.append(
                Finding.error(name, f"the check failed: {type(error).__name__}: {error}", _REPORT_IT)
            )
        finally:
            done.set()

    threading.Thread(target=run, name=f"doctor {name}", daemon=True).start()
    if done.wait(limit_s):
        return found
    return [
        Finding.error(
            name,
            f"no result after {limit_s:.0f} s",
            "check that the host name resolves and the server responds",
        )
    ]
