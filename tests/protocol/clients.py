"""Producers and readers, one for each job, and what happens to jobs and server without any actor's doing."""

from __future__ import annotations

from protocol import calls
from protocol.actor import CHANCE, FAULT, STEP, Actor, Move, Moves, learn_end
from protocol.script_server import FAR, PAST
from protocol.world import (
    CLOSING,
    DELETED,
    FILED,
    FINAL,
    JOB_IDS,
    LEFT,
    NEW,
    READING,
    SUBMITTED,
    Snapshot,
    State,
)

from pagefleet.api.contract import keys


class Clients(Actor):
    """SUBMIT, ENQUEUE, CLIENT, CANCEL, DELETE (protocol lines 1, 2, 15, 16)."""

    def moves(self, state: State) -> Moves:
        for job, client in enumerate(state.clients):
            name = f"client {JOB_IDS[job]}: "
            if client.phase == NEW:
                after, _ = self.call(state, calls.submit, job)
                yield Move(name + "submit", STEP, after.with_client(job, phase=SUBMITTED))
            elif client.phase == SUBMITTED:
                yield Move(name + "enqueue", STEP, state.with_client(job, phase=READING).enqueue(job))
            if client.phase == READING:
                yield from self._read(state, job, name)
            if client.phase in (READING, LEFT):
                yield from self._intervene(state, job, name)
            if client.phase in (SUBMITTED, READING) and state.may("client death"):
                after = state.spend("client death").with_client(job, phase=LEFT)
                gone = self.server.without(after.keyspace, keys.client(calls.client_id(job)))
                yield Move(name + "DIES", FAULT, after._replace(keyspace=gone))

    def _read(self, state: State, job: int, name: str) -> Moves:
        client, fields = state.clients[job], self.job(state, job)
        if not client.is_subscribed:
            yield Move(name + "reconnects", STEP, state.with_client(job, is_subscribed=True))
        elif state.may("client drop") and not client.end:
            after = state.spend("client drop").with_client(job, is_subscribed=False)
            yield Move(name + "CONNECTION DROP", FAULT, after)
        if fields is None:
            if not client.end:
                after, reply = self.call(state, calls.resubmit, job)
                if reply.is_deleted:
                    after = learn_end(after, job, DELETED)
                yield Move(name + "submits again", STEP, after.enqueue(job) if reply.created else after)
            return
        num_tokens, end = self.keyspace(state).num_tokens(JOB_IDS[job]), fields["state"]
        if client.num_read < num_tokens or (end in FINAL and not client.end):
            after = state.with_client(job, num_read=max(client.num_read, num_tokens))
            yield Move(name + "replays", STEP, learn_end(after, job, end) if end in FINAL else after)

    def _intervene(self, state: State, job: int, name: str) -> Moves:
        if state.may("cancel") and not state.clients[job].end:
            after, _ = self.call(state.spend("cancel"), calls.cancel, job)
            yield Move(name + "CANCEL", FAULT, after)
        if state.may("revoke") and not state.clients[job].end:
            after, _ = self.call(state.spend("revoke"), calls.revoke, job)
            yield Move(name + "REVOKE", FAULT, after)
        if state.may("delete"):
            after, _ = self.call(state.spend("delete"), calls.delete, job)
            yield Move(name + "DELETE BY ANOTHER", FAULT, after)
            yield Move(name + "DELETE", FAULT, after.with_client(job, phase=LEFT))


class Fate(Actor):
    """A server that comes back without its last second, a deadline that passes, a message come twice."""

    def moves(self, state: State) -> Moves:
        if state.may("rollback"):
            yield self._sync(state) if state.snapshot is None else self._roll_back(state, state.snapshot)
        for job, job_id in enumerate(JOB_IDS[: len(state.queue)]):
            fields = self.job(state, job)
            if fields is None or fields["state"] in FINAL:
                continue
            if fields.get("not_before") == FAR:
                due = self.server.with_fields(state.keyspace, keys.job(job_id), not_before=PAST)
                yield Move(f"job {job_id}: its time comes", STEP, state._replace(keyspace=due))
            if fields.get("refused_until") == FAR:
                over = self.server.with_fields(state.keyspace, keys.job(job_id), refused_until=PAST)
                yield Move(f"job {job_id}: it was refused for too long", STEP, state._replace(keyspace=over))
            if state.may("deadline"):
                late = self.server.with_fields(state.keyspace, keys.job(job_id), deadline=PAST)
                after = state.spend("deadline")._replace(keyspace=late)
                yield Move(f"job {job_id}: ITS DEADLINE PASSES", FAULT, after)
            if state.may("foreign revoke") and not self.keyspace(state).result(job_id):
                # Celery's own revoke reads the state, and writes where the task has not started.
                name, meta = keys.result(job_id), calls.result_meta("REVOKED")
                after = state.spend("foreign revoke")
                after = after._replace(keyspace=self.server.with_string(after.keyspace, name, meta))
                yield Move(f"job {job_id}: A FOREIGN WORKER STORES REVOKED", FAULT, after)
            if state.may("duplicate"):
                yield Move(f"job {job_id}: MESSAGE TWICE", FAULT, state.spend("duplicate").enqueue(job))

    def _sync(self, state: State) -> Move:
        kept = Snapshot(state.keyspace, state.queue, state.unacked)
        return Move("server: synced to disk for the last time", CHANCE, state._replace(snapshot=kept))

    def _roll_back(self, state: State, kept: Snapshot) -> Move:
        after = state.spend("rollback")._replace(**kept._asdict(), snapshot=None)
        for worker in range(len(after.workers)):
            after = drop_connection(after, worker)
            runs = after.workers[worker].runs
            runs = tuple(run and run._replace(is_forgotten=True) for run in runs)
            after = after.with_worker(worker, runs=runs)
        for job in range(len(after.clients)):
            after = after.with_client(job, is_subscribed=False)
        return Move("server: KILLED, BACK WITHOUT WHAT IT HAD NOT SYNCED", FAULT, after)


def drop_connection(state: State, worker: int) -> State:
    """Messages that came over the old connection can no longer be acknowledged. A CLOSE under way breaks off
    between its two halves, and is repeated as a whole."""
    runs = tuple(
        run and run._replace(has_message=False, stage=CLOSING if run.stage == FILED else run.stage)
        for run in state.workers[worker].runs
    )
    return state.with_worker(worker, runs=runs, popped=None, inbox=(), reaping=None)
