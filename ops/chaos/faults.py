"""The faults: what each does to the fleet, for how long, and what is measured on the way."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ops.chaos.fleet import sleep_until
from ops.chaos.scene import Scene, Victim
from ops.chaos.streams import ReaderProcess, StreamLog
from pagefleet.api.contract.messages import JobState
from pagefleet.workers.threads.loop_thread import CRASH_EXIT_STATUS
from pagefleet.workers.threads.polling import wait_until

PAUSE_S: Final = 5.5
CUT_S: Final = 5.0
_SETTLE_S: Final = 0.2
"""Seconds after a signal: the worker no longer writes, and no other can have taken over its jobs yet."""
_NUM_ORPHANS: Final = 4
_ORPHAN_TOKENS: Final = 1000, 3000
"""More tokens than the engine produces before the client's heartbeat expires: with a model, without one."""
_ORPHAN_TIMEOUT_S: Final = 30.0


def _strike(scene: Scene, fault: str, strike: str, number: signal.Signals) -> Victim | None:
    """Send a signal to a worker and remember its jobs."""
    victim = scene.victim(strike)
    if victim is not None:
        at = time.time()
        victim.worker.send_signal(number)
        sleep_until(time.monotonic() + _SETTLE_S)
        scene.died(fault, victim.worker_id, at)
    return victim


def kill(scene: Scene) -> None:
    """kill -9; a supervisor restarts the worker, at once or a little later."""
    victim = _strike(scene, "kill", "kill -9", signal.SIGKILL)
    if victim is not None:
        victim.worker.wait(5.0)
        sleep_until(time.monotonic() + scene.rng.choice([0.0, 1.0]))
        victim.worker.start()


def pause(scene: Scene) -> None:
    """SIGSTOP for longer than a lease, then SIGCONT: the worker resumes and must be fenced."""
    victim = _strike(scene, "pause", "SIGSTOP", signal.SIGSTOP)
    if victim is not None:
        sleep_until(time.monotonic() + PAUSE_S)
        victim.worker.send_signal(signal.SIGCONT)
        scene.tell(f"SIGCONT of worker {victim.index}")


def wedge(scene: Scene) -> None:
    """The engine's thread hangs in a step; the watchdog ends the process after three leases."""
    victim = _strike(scene, "wedge", "wedge", signal.SIGUSR2)
    if victim is not None:
        scene.expect_exit(victim, CRASH_EXIT_STATUS)
        victim.worker.start()


def drain(scene: Scene) -> None:
    """SIGTERM with --drain-seconds 0; measured until its last job is back in its queue."""
    victim = scene.victim("SIGTERM")
    if victim is None:
        return
    fleet, job_ids = scene.fleet, [log.job_id for log in scene.logs]
    index, worker, worker_id = victim
    had_jobs = bool(fleet.jobs_of(worker_id, job_ids))
    begun_at = time.monotonic()
    worker.terminate()

    def is_empty() -> bool:
        return not fleet.jobs_of(worker_id, job_ids) and not fleet.num_unacked(worker_id)

    if not wait_until(is_empty, 10.0, poll_s=0.005):
        scene.complaints.append(f"worker {index} kept jobs for 10 s after SIGTERM")
    elif had_jobs:
        scene.drains_s.append(time.monotonic() - begun_at)
    scene.expect_exit(victim, 0)
    worker.start()


def cut(scene: Scene) -> None:
    """Nothing passes between Valkey and one worker, or all of them, for 5 s."""
    _cut(scene, to_server=True, to_client=True)


def cut_requests(scene: Scene) -> None:
    """What workers send is lost; what Valkey sends arrives."""
    _cut(scene, to_server=True, to_client=False)


def cut_replies(scene: Scene) -> None:
    """Valkey receives everything, and its answers are lost."""
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
    """kill -9 of the client process; a new client attaches to the jobs that were sent and sends the rest."""
    scene.tell(f"kill -9 of the {scene.reader.style} client")
    scene.reader.kill()
    sleep_until(time.monotonic() + scene.rng.uniform(0.0, 2.0))
    scene.reader = scene.replace_reader(scene.reader)
    for log in scene.logs:
        if not log.ended:
            scene.reader.read(log, attach=log.begun)


def gateway(scene: Scene) -> None:
    """kill -9 of a gateway; its clients continue at the other gateway. A supervisor restarts it."""
    index = scene.rng.randrange(len(scene.fleet.gateways))
    struck = scene.fleet.gateways[index]
    scene.tell(f"kill -9 of gateway {index}")
    scene.num_gateways_killed += 1
    struck.send_signal(signal.SIGKILL)
    struck.wait(5.0)
    sleep_until(time.monotonic() + scene.rng.choice([0.0, 1.0]))
    struck.start()


def client_gone(scene: Scene) -> None:
    """kill -9 of another client, the only reader of its jobs: these are cancelled, and no others."""
    begun = scene.logs[0].job_id
    max_tokens = _ORPHAN_TOKENS[scene.fleet.engine == "null"]
    fields = {"prompt_token_ids": [40] * 64, "max_tokens": max_tokens, "temperature": 0.0}
    logs = [StreamLog(f"{begun}-orphan-{number}", fields) for number in range(_NUM_ORPHANS)]
    reader = ReaderProcess(scene.reader.style, scene.fleet.reader_arguments(scene.reader.style))
    for log in logs:
        reader.read(log)
    if not wait_until(lambda: all(log.begun for log in logs), _ORPHAN_TIMEOUT_S):
        scene.complaints.append("another client could not send its jobs")
    scene.orphan_ids += [log.job_id for log in logs]
    scene.tell(f"kill -9 of another {reader.style} client with {len(logs)} jobs")
    at = time.time()
    reader.kill()
    ends = scene.fleet.hashes(scene.orphan_ids, "state", "ended_at")

    def have_ended() -> bool:
        ends.update(scene.fleet.hashes(scene.orphan_ids, "state", "ended_at"))
        return all(ended_at for _, ended_at in ends.values())

    wait_until(have_ended, _ORPHAN_TIMEOUT_S, poll_s=0.1)
    for job_id, (state, ended_at) in ends.items():
        if state == JobState.CANCELLED:
            scene.orphans_s.append(int(ended_at) / 1000 - at)
        else:
            scene.complaints.append(f"{job_id} was left in state {state} by its client, and not cancelled")


def several(scene: Scene) -> None:
    """Two or three of them within a second."""
    reading = gateway if scene.fleet.gateways else client
    chosen = scene.rng.sample([kill, kill, drain, pause, cut, cut_replies, valkey, reading], 3)
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
    "client-gone": client_gone,
    "gateway": gateway,
    "several": several,
}

_DECK: Final = {
    "null": "kill*7 drain*5 valkey*4 client*4 several*2 pause*2 cut*1 cut-requests*1 cut-replies*1 wedge*1 "
    "client-gone*1",
    "gateway": "gateway*6 kill*4 valkey*3 drain*2 several*2 pause*1 cut*1 client-gone*1",
    "model": "kill*3 drain*1 valkey*1 client*1 several*1 pause*1 cut*1 cut-replies*1 wedge*1",
}


def schedule(deck_name: str, num_rounds: int, rng: random.Random, only: Sequence[str] = ()) -> list[str]:
    """The fault of each round: the deck of that name, shuffled, as often as it takes. The slow faults are
    rare in it, so that a hundred rounds take about ten minutes; each is in the null engine's or the
    gateways'."""
    pairs = [entry.split("*") for entry in _DECK[deck_name].split()]
    deck = list(only) or [name for name, count in pairs for _ in range(int(count))]
    names: list[str] = []
    while len(names) < num_rounds:
        rng.shuffle(deck)
        names += deck
    return names[:num_rounds]
