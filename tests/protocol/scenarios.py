"""Which faults, how many jobs, from which beginning; what is searched as a whole and what is sampled."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from protocol import calls
from protocol.script_server import FAR, ScriptServer
from protocol.world import JOB_IDS, LEFT, RUNNING, WORKER_IDS, Client, Run, State, first_state

from pagefleet.api.contract import keys


@dataclass(frozen=True)
class Scenario:
    """``events``: what happens at most once each; a name twice: at most twice.

    With ``past``, each job begins with these fields in its hash: deaths that would take long to live through.
    Unattended, nobody reads, workers live and jobs are queued from the beginning; begun, they are with the
    first worker and its first prefill is next. For two jobs all other states would be too many. Mixed, the
    second worker has other weights.
    """

    events: tuple[str, ...] = ()
    num_jobs: int = 1
    is_attended: bool = True
    is_begun: bool = False
    is_mixed: bool = False
    past: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        parts = [*self.events] or ["no fault"]
        parts += [f"{self.num_jobs} jobs"] if self.num_jobs > 1 else []
        parts += ["begun"] if self.is_begun else [] if self.is_attended else ["unattended"]
        parts += ["mixed"] if self.is_mixed else []
        return ", ".join(parts + [f"{field}={value}" for field, value in self.past])

    def first_state(self, server: ScriptServer) -> State:
        keyspace = server.empty
        for job in range(self.num_jobs):
            keyspace = server.run(keyspace, calls.reserve).keyspace
            keyspace = server.with_string(keyspace, keys.client(calls.client_id(job)))
        if self.is_attended:
            return first_state(keyspace, self.num_jobs, Counter(self.events))
        for worker in range(len(WORKER_IDS)):
            keyspace = server.run(keyspace, calls.beat, worker).keyspace
        for job in range(self.num_jobs):
            keyspace = server.run(keyspace, calls.submit, job).keyspace
            keyspace = server.with_fields(keyspace, keys.job(JOB_IDS[job]), **dict(self.past))
        state = first_state(keyspace, self.num_jobs, Counter(self.events))
        state = state._replace(clients=(Client(LEFT),) * self.num_jobs)
        if self.is_mixed:
            state = state.with_worker(1, weights="other")
        return _begin(server, state) if self.is_begun else state._replace(queue=(1,) * self.num_jobs)


def _begin(server: ScriptServer, state: State) -> State:
    for job in range(len(state.queue)):
        keyspace, reply, _ = server.run(state.keyspace, calls.claim, 0, job)
        state = state._replace(keyspace=keyspace).unack(0, job, 1)
        state = state.with_run(0, job, Run(reply.epoch, RUNNING, is_solo=reply.solo))
    return state


def begun_pair(*events: str, **past: str) -> Scenario:
    return Scenario(events, num_jobs=2, is_attended=False, is_begun=True, past=tuple(past.items()))


def begun(*events: str) -> Scenario:
    return Scenario(events, is_attended=False, is_begun=True)


def mixed(*events: str) -> Scenario:
    return Scenario(events, is_attended=False, is_begun=True, is_mixed=True)


def unattended(*events: str, **past: str) -> Scenario:
    return Scenario(events, is_attended=False, past=tuple(past.items()))


ONE_FAULT = [
    Scenario((event,) if event else ())
    for event in (
        "", "death", "drain", "drop", "wedge", "duplicate", "lost reply", "cancel", "revoke", "delete",
        "deadline", "client death", "client drop", "foreign revoke", "engine failure",
    )
]  # fmt: skip
"""Exhaustive, in every test run."""

CAPS = [
    unattended("death", solo="1", blame="2"),
    unattended("death", fruitless="8"),
    unattended("death", fruitless="9", solo="1"),
    unattended("death", "cancel", solo="1", blame="2"),
]
"""Exhaustive: the death that is one too many, and the one before."""

SCHEDULED = [
    unattended(*events, not_before=FAR)
    for events in ((), ("duplicate",), ("death",), ("cancel",), ("delete",))
]
"""Exhaustive: a job that is to begin later, and its first message is on its way."""

MIXED = [mixed(*events) for events in (("death",), ("drain",), ("drain", "deadline"), ("drain", "duplicate"))]
"""Exhaustive: a job that was begun with other weights than the second worker's."""

LONG = [
    mixed("pause"),
    *(mixed("drain", event) for event in ("cancel", "delete", "lost reply", "drop", "death")),
    Scenario(("pause",)),
    Scenario(("rollback",)),
    Scenario(("death", "death")),
    *(Scenario(("death", event)) for event in (
        "drain", "drop", "wedge", "duplicate", "lost reply", "cancel", "revoke", "delete", "deadline",
        "client death", "client drop",
    )),
    Scenario(("cancel", "delete")),
    unattended("duplicate", "death", not_before=FAR),
    unattended("drain", "cancel", not_before=FAR),
    unattended("lost reply", "death", not_before=FAR),
    unattended("deadline", "drop", not_before=FAR),
    Scenario(("lost reply", "delete")),
    Scenario(("client drop", "delete")),
    Scenario(("foreign revoke", "delete")),
    Scenario(("foreign revoke", "death")),
    Scenario(("cancel", "lost reply")),
    Scenario(("cancel", "deadline")),
    Scenario(("duplicate", "drain")),
    Scenario(("drain", "drain")),
    Scenario(("drop", "drop")),
    Scenario(("lost reply", "lost reply")),
    unattended("pause", "cancel"),
    unattended("pause", "duplicate"),
    unattended("pause", "lost reply"),
    begun_pair(),
    begun_pair("death"),
    begun_pair("drain"),
    begun_pair("engine failure"),
    begun_pair("death", solo="1"),
    begun_pair("engine failure", solo="1"),
    Scenario(("engine failure", "engine failure")),
    Scenario(("engine failure", "death")),
]  # fmt: skip
"""Exhaustive, by ``make protocol-check``."""

SAMPLED = [
    Scenario(("pause", "death")),
    Scenario(("pause", "pause")),
    Scenario(("pause", "drain", "lost reply")),
    Scenario(("rollback", "death")),
    Scenario(("rollback", "pause")),
    Scenario(("rollback", "drop")),
    Scenario(("rollback", "lost reply")),
    Scenario(("wedge", "pause")),
    Scenario(("death", "death", "pause"), num_jobs=2),
    Scenario(("death", "cancel", "duplicate"), num_jobs=2),
    begun_pair("death", "cancel"),
    begun_pair("engine failure", "cancel"),
    begun_pair("engine failure", "engine failure", "lost reply"),
    begun_pair("death", "lost reply"),
    begun_pair("pause", "death"),
    begun_pair("pause", "cancel", blame="2"),
]
"""Random walks: their states are too many."""
