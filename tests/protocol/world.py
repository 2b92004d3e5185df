"""The world in which the protocol is checked: its actors' memories, its messages, and what the server holds.

A state is a value. What the server holds is a number of :class:`~protocol.script_server.ScriptServer`; the
rest stands here. Celery's part of the server (queue, unacknowledged messages) is modelled, because kombu
moves it and no script of ours does: a message is the job that it names, and none is told from another.
"""

from __future__ import annotations

from typing import Final, NamedTuple

JOB_IDS: Final = ("a", "b")
WORKER_IDS: Final = ("w1", "w2")
NUM_TOKENS: Final = 2
FINAL: Final = "DFCX"
DELETED: Final = "-"
"""What a reader hears in place of an end that it has missed."""
RESULT_OF: Final = {"D": "SUCCESS", "F": "FAILURE", "X": "FAILURE", "C": "REVOKED"}
"""Celery's state of an ended job."""

UP, PAUSED, WEDGED, DRAINING, DEAD, GONE = "up", "paused", "wedged", "draining", "dead", "gone"
NEW, SUBMITTED, READING, LEFT = "new", "submitted", "reading", "left"
CLAIMED, RUNNING, ENDING = "claimed", "running", "ending"
CLOSING, FILED, CLOSED = "closing", "filed", "closed"


class Run(NamedTuple):
    """What a worker remembers of a job that it holds."""

    epoch: int
    stage: str
    made: int = 0
    """Tokens computed, those found in the log included."""
    sent: int = 0
    """Tokens of which the worker knows that the log has them."""
    is_marked: bool = False
    """Its MARK was answered: its first prefill may reach the device."""
    is_begun: bool = False
    """Its first prefill has reached the device."""
    is_solo: bool = False
    is_forgotten: bool = False
    """Not its memory but the checker's: the server went back behind what the worker knows of it."""
    end: str = ""
    """In stage ``ENDING``: the final state that it asks for."""
    has_message: bool = True

    @property
    def is_starting(self) -> bool:
        """A suspect, as far as the worker knows: the server has not confirmed a token."""
        return self.stage == RUNNING and self.is_marked and not self.sent


class Worker(NamedTuple):
    mode: str
    runs: tuple[Run | None, ...]
    popped: int | None = None
    """Between BRPOP and the write to the ledger of unacknowledged messages."""
    inbox: tuple[int, ...] = ()
    """Received, not claimed yet."""
    reaping: int | None = None
    """The worker that it found dead."""
    first_prefills: frozenset[int] = frozenset()
    """Not its memory but the checker's: the jobs in their first prefill when its lease ran out."""
    weights: str = "w"
    """Of its model."""


class Client(NamedTuple):
    """Producer and reader of one job."""

    phase: str = NEW
    is_subscribed: bool = True
    num_read: int = 0
    end: str = ""


class Snapshot(NamedTuple):
    """What of the server is on its disk."""

    keyspace: int
    queue: tuple[int, ...]
    unacked: tuple[tuple[int, ...], ...]


class State(NamedTuple):
    """``queue[job]`` and ``unacked[worker][job]`` count messages; ``events`` is what may still happen."""

    keyspace: int
    queue: tuple[int, ...]
    unacked: tuple[tuple[int, ...], ...]
    workers: tuple[Worker, ...]
    clients: tuple[Client, ...]
    events: tuple[tuple[str, int], ...]
    snapshot: Snapshot | None = None

    def may(self, event: str) -> bool:
        return any(name == event for name, _ in self.events)

    def spend(self, event: str) -> State:
        left = tuple((name, n - (name == event)) for name, n in self.events)
        return self._replace(events=tuple((name, n) for name, n in left if n))

    def with_worker(self, index: int, **changes) -> State:
        return self._replace(workers=put(self.workers, index, self.workers[index]._replace(**changes)))

    def with_run(self, index: int, job: int, run: Run | None) -> State:
        return self.with_worker(index, runs=put(self.workers[index].runs, job, run))

    def with_client(self, job: int, **changes) -> State:
        return self._replace(clients=put(self.clients, job, self.clients[job]._replace(**changes)))

    def enqueue(self, job: int) -> State:
        return self._replace(queue=put(self.queue, job, self.queue[job] + 1))

    def unack(self, worker: int, job: int, change: int) -> State:
        """One unacknowledged message more or, if there is any, less."""
        mine = self.unacked[worker]
        mine = put(mine, job, max(0, mine[job] + change))
        return self._replace(unacked=put(self.unacked, worker, mine))

    def restore(self, worker: int, job: int) -> State:
        """A message goes from the unacknowledged ones back to the queue, if it is still there."""
        return self.unack(worker, job, -1).enqueue(job) if self.unacked[worker][job] else self

    def is_held(self, job: int) -> bool:
        """A message of the job is in its queue or with a worker."""
        return bool(self.queue[job]) or any(mine[job] for mine in self.unacked)


def put(items: tuple, index: int, item) -> tuple:
    return (*items[:index], item, *items[index + 1 :])


def first_state(keyspace: int, num_jobs: int, events: dict[str, int]) -> State:
    none = (0,) * num_jobs
    return State(
        keyspace,
        queue=none,
        unacked=(none,) * len(WORKER_IDS),
        workers=(Worker(UP, (None,) * num_jobs),) * len(WORKER_IDS),
        clients=(Client(),) * num_jobs,
        events=tuple(sorted(events.items())),
    )
