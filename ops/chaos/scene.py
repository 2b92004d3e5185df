"""One round, as its faults see it: whom they may strike, and what is remembered of what they did."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ops.chaos.fleet import ChaosFleet
from ops.chaos.streams import ReaderProcess, StreamLog
from pagefleet.workers.local.local_stack import WorkerProcess
from pagefleet.workers.threads.polling import wait_until

_EXIT_TIMEOUT_S: Final = 40.0


class Death(NamedTuple):
    """A worker that was killed or wedged, when (seconds since the epoch), the jobs that it ran, and how many
    tokens of each stood in the log."""

    fault: str
    worker_id: str
    at: float
    attempts: dict[str, int]
    num_logged: dict[str, int]


class Victim(NamedTuple):
    """A worker as it was when a fault chose it."""

    index: int
    worker: WorkerProcess
    worker_id: str


@dataclass(slots=True)
class Scene:
    """One round, as the faults see it. Several faults of one round never choose the same worker."""

    fleet: ChaosFleet
    rng: random.Random
    logs: Sequence[StreamLog]
    reader: ReaderProcess
    replace_reader: Callable[[ReaderProcess], ReaderProcess]
    deaths: list[Death] = field(default_factory=list)
    drains_s: list[float] = field(default_factory=list)
    orphan_ids: list[str] = field(default_factory=list)
    orphans_s: list[float] = field(default_factory=list)
    num_gateways_killed: int = 0
    complaints: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    _struck: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def victim(self, strike: str) -> Victim | None:
        """A worker that no other fault of this round has chosen, and what is about to be done to it."""
        with self._lock:
            left = sorted(set(range(len(self.fleet.workers))) - self._struck)
            if not left:
                return None
            index = self.rng.choice(left)
            self._struck.add(index)
        victim = Victim(index, self.fleet.workers[index], self.fleet.worker_ids[index])
        self.tell(f"{strike} of worker {index} {victim.worker_id}")
        return victim

    def tell(self, text: str) -> None:
        self.story.append(f"{time.strftime('%H:%M:%S')} {text}")

    def died(self, fault: str, worker_id: str, at: float) -> None:
        """Remembers what the worker ran. No survivor may take a job before the lease has run out."""
        rows = self.fleet.hashes([log.job_id for log in self.logs], "state", "owner", "attempts", "n:0")
        held = {job_id: row for job_id, row in rows.items() if row[0] == "R" and row[1] == worker_id}
        attempts = {job_id: int(row[2]) for job_id, row in held.items()}
        num_logged = {job_id: int(row[3] or 0) for job_id, row in held.items()}
        self.deaths.append(Death(fault, worker_id, at, attempts, num_logged))

    def expect_exit(self, victim: Victim, expected: int) -> None:
        index, worker, _ = victim
        if not wait_until(lambda: worker.exit_status is not None, _EXIT_TIMEOUT_S):
            self.complaints.append(f"worker {index} did not end within {_EXIT_TIMEOUT_S:g} s")
        status = worker.wait(0.0)
        if status != expected:
            self.complaints.append(f"worker {index} ended with {status}, not {expected}")
