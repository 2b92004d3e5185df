"""The examination: every check in turn, none of which can hold it up or end it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Final

import redis

from pagefleet.api.config.extras import missing_extras, pip_command
from pagefleet.api.contract.errors import FleetError, RedisUnavailable
from pagefleet.api.operate.doctor.finding import Check, CheckGroup, Finding, Level, Patient
from pagefleet.api.operate.doctor.groups import FLEET, PROCESS, REACH, SERVER
from pagefleet.api.operate.doctor.server import REDIS, no_answer

ENTRY_POINTS: Final = "pagefleet.doctor"


def examine(patient: Patient) -> Iterator[Finding]:
    """The findings as they come: ours, then those of other packages. What needs Redis comes only while it
    answers."""
    answers = True
    for group in (PROCESS, REACH, SERVER, FLEET):
        if group.needs_redis and not answers:
            continue
        for finding in _run(group, patient):
            answers = answers and not (finding.check == REDIS and finding.level is Level.WRONG)
            yield finding
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda each: each.name):
        if missing := missing_extras(entry):
            yield Finding.skipped(entry.name, f"not installed here: {pip_command(missing)} adds it")
        else:
            yield from _run(entry.load(), patient)


def _run(group: CheckGroup, patient: Patient) -> Iterator[Finding]:
    for check in group.checks:
        findings = _bounded(check, patient, group.limit_s)
        yield from findings
        if any(finding.check == REDIS and finding.level is Level.WRONG for finding in findings):
            return  # the others would each wait for it


def _bounded(check: Check, patient: Patient, limit_s: float) -> list[Finding]:
    """What a check says within the time. Names that do not resolve have no timeout."""
    name = check.__name__.replace("_", " ").strip()
    found: list[Finding] = []
    done = threading.Event()

    def run() -> None:
        try:
            found.extend(check(patient))
        except (RedisUnavailable, redis.ConnectionError, redis.TimeoutError) as error:
            found.append(no_answer(error))
        except (FleetError, redis.RedisError, OSError) as error:
            found.append(Finding.wrong(name, f"{error}".rstrip("."), "the check itself failed"))
        except Exception as error:  # noqa: BLE001
            # A check that says nothing would look like one that found nothing.
            found.append(Finding.wrong(name, f"{type(error).__name__}: {error}", "the check itself failed"))
        finally:
            done.set()

    threading.Thread(target=run, name=f"doctor {name}", daemon=True).start()
    if done.wait(limit_s):
        return found
    return [Finding.wrong(name, f"no answer in {limit_s:.0f} s", "something hangs there")]
