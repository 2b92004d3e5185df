"""The faults: what each does to the fleet, for how long, and what is measured on the way."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ops.chaos.fleet import ChaosFleet, sleep_until
from ops.chaos.streams import ReaderProcess, StreamLog
from pagefleet.workers.engine_loop import wait_until
from pagefleet.workers.loop_thread import CRASH_EXIT_STATUS

PAUSE_S: Final = 5.5
CUT_S: Final = 5.0
_EXIT_TIMEOUT_S: Final = 40.0


class Death(NamedTuple):
    """A worker that was killed or wedged, when (seconds since the epoch), and the jobs that it ran."""

    fault: str
    worker_id: str
    at: float
    attempts: dict[str, int]


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
    complaints: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    _struck: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def victim(self) -> int | None:
        """A worker that no other fault of this round has chosen."""
        with self._lock:
            left = sorted(set(range(len(self.fleet.workers))) - self._struck)
            if not left:
                return None
            chosen = self.rng.choice(left)
            self._struck.add(chosen)
            return chosen

    def tell(self, text: str) -> None:
        self.story.append(f"{time.strftime('%H:%M:%S')} {text}")

    def died(self, fault: str, worker_id: str, at: float) -> None:
        """Remembers what the worker ran. No survivor may take a job before the lease has run out."""
        rows = self.fleet.hashes([log.job_id for log in self.logs], "state", "owner", "attempts")
        attempts = {
            job_id: int(count)
            for job_id, (state, owner, count) in rows.items()
            if state == "R" and owner == worker_id
        }
        self.deaths.append(Death(fault, worker_id, at, attempts))

    def expect_exit(self, index: int, statuses: Sequence[int]) -> None:
        worker = self.fleet.workers[index]
        if not wait_until(lambda: worker.exit_status is not None, _EXIT_TIMEOUT_S):
            self.complaints.append(f"worker {index} did not end within {_EXIT_TIMEOUT_S:g} s")
        status = worker.wait(0.0)
        if status not in statuses:
            self.complaints.append(f"worker {index} ended with {status}, not {statuses[0]}")


def kill(scene: Scene) -> None:
    """kill -9; a supervisor starts it again, at once or a little later."""
    index = scene.victim()
    if index is None:
        return
    worker, worker_id = scene.fleet.workers[index], scene.fleet.worker_ids[index]
    scene.tell(f"kill -9 of worker {index} {worker_id}")
    at = time.time()
    worker.send_signal(signal.SIGKILL)
    worker.wait(5.0)
    scene.died("kill", worker_id, at)
    sleep_until(time.monotonic() + scene.rng.choice([0.0, 1.0]))
    worker.start()


def pause(scene: Scene) -> None:
    """SIGSTOP for longer than a lease, then SIGCONT: it comes back and must find itself fenced."""
    index = scene.victim()
    if index is None:
        return
    worker, worker_id = scene.fleet.workers[index], scene.fleet.worker_ids[index]
    scene.tell(f"SIGSTOP of worker {index} {worker_id}")
    at = time.time()
    worker.send_signal(signal.SIGSTOP)
    try:
        scene.died("pause", worker_id, at)
        sleep_until(time.monotonic() + PAUSE_S)
    finally:
        worker.send_signal(signal.SIGCONT)
    scene.tell(f"SIGCONT of worker {index}")


def drain(scene: Scene) -> None:
    """SIGTERM with --drain-seconds 0; measured until its last job is back in its queue."""
    index = scene.victim()
    if index is None:
        return
    fleet, job_ids = scene.fleet, [log.job_id for log in scene.logs]
    worker, worker_id = fleet.workers[index], fleet.worker_ids[index]
    had_jobs = bool(fleet.jobs_of(worker_id, job_ids))
    scene.tell(f"SIGTERM of worker {index} {worker_id}")
    begun_at = time.monotonic()
    worker.terminate()

    def is_empty() -> bool:
        return not fleet.jobs_of(worker_id, job_ids) and not fleet.num_unacked(worker_id)

    if not wait_until(is_empty, 10.0, poll_s=0.005):
        scene.complaints.append(f"worker {index} kept jobs for 10 s after SIGTERM")
    elif had_jobs:
        scene.drains_s.append(time.monotonic() - begun_at)
    scene.expect_exit(index, [0])
    worker.start()


def wedge(scene: Scene) -> None:
    """The engine's thread never ends its turn; the watchdog ends the process after three leases."""
    index = scene.victim()
    if index is None:
        return
    worker, worker_id = scene.fleet.workers[index], scene.fleet.worker_ids[index]
    scene.tell(f"wedge of worker {index} {worker_id}")
    at = time.time()
    worker.send_signal(signal.SIGUSR2)
    sleep_until(time.monotonic() + 0.2)
    scene.died("wedge", worker_id, at)
    scene.expect_exit(index, [CRASH_EXIT_STATUS])
    worker.start()


def cut(scene: Scene) -> None:
    """Nothing passes between Valkey and one worker, or all of them, for 5 s."""
    _cut(scene, to_server=True, to_client=True)


def cut_requests(scene: Scene) -> None:
    """What workers send is lost; what Valkey sends arrives."""
    _cut(scene, to_server=True, to_client=False)


def cut_replies(scene: Scene) -> None:
    """Valkey hears everything, and its answers are lost."""
    _cut(scene, to_server=False, to_client=True)


def _cut(scene: Scene, *, to_server: bool, to_client: bool) -> None:
    proxies = scene.fleet.proxies
    chosen = scene.rng.choice([proxies, [scene.rng.choice(proxies)]])
    reset = scene.rng.random() < 0.5
    where = [proxies.index(proxy) for proxy in chosen]
    scene.tell(f"cut of workers {where}, to_server={to_server} to_client={to_client} reset={reset}")
    for proxy in chosen:
        proxy.cut(to_server=to_server, to_client=to_client)
    try:
        sleep_until(time.monotonic() + CUT_S)
    finally:
        for proxy in chosen:
            proxy.heal(reset=reset)
    scene.tell("healed")


def valkey(scene: Scene) -> None:
    """kill -9 of Valkey; it comes back on the same port with its append-only file."""
    scene.tell("kill -9 of Valkey")
    scene.fleet.server.kill()
    sleep_until(time.monotonic() + scene.rng.uniform(0.0, 1.0))
    scene.fleet.server.start()
    scene.tell("Valkey is back")


def client(scene: Scene) -> None:
    """kill -9 of the client process; another one attaches to what had been sent and sends the rest."""
    scene.tell(f"kill -9 of the {scene.reader.style} client")
    scene.reader.kill()
    sleep_until(time.monotonic() + scene.rng.uniform(0.0, 2.0))
    scene.reader = scene.replace_reader(scene.reader)
    for log in scene.logs:
        if not log.ended:
            scene.reader.read(log, attach=log.begun)


def several(scene: Scene) -> None:
    """Two or three of them within a second."""
    chosen = scene.rng.sample([kill, kill, drain, pause, cut, cut_replies, valkey, client], 3)
    chosen = chosen[: scene.rng.choice([2, 3])]
    offsets = sorted(scene.rng.uniform(0.0, 1.0) for _ in chosen)
    begun_at = time.monotonic()
    with ThreadPoolExecutor(len(chosen)) as pool:
        strikes = []
        for strike, offset in zip(chosen, offsets, strict=True):
            sleep_until(begun_at + offset)
            strikes.append(pool.submit(strike, scene))
        for each in strikes:
            each.result()


FAULTS: Final[dict[str, Callable[[Scene], None]]] = {
    "kill": kill,
    "pause": pause,
    "drain": drain,
    "wedge": wedge,
    "cut": cut,
    "cut-requests": cut_requests,
    "cut-replies": cut_replies,
    "valkey": valkey,
    "client": client,
    "several": several,
}

_DECK: Final = {
    "null": "kill*7 drain*5 valkey*4 client*4 several*2 pause*2 cut*1 cut-requests*1 cut-replies*1 wedge*1",
    "model": "kill*3 drain*1 valkey*1 client*1 several*1 pause*1 cut*1 cut-replies*1 wedge*1",
}


def schedule(engine: str, num_rounds: int, rng: random.Random, only: Sequence[str] = ()) -> list[str]:
    """The fault of each round: the deck of the engine, shuffled, as often as it takes. The slow faults are
    rare in it, so that a hundred rounds take about ten minutes; each is in every deck."""
    pairs = [entry.split("*") for entry in _DECK[engine].split()]
    deck = list(only) or [name for name, count in pairs for _ in range(int(count))]
    names: list[str] = []
    while len(names) < num_rounds:
        rng.shuffle(deck)
        names += deck
    return names[:num_rounds]
