"""REAP, SWEEP, AUDIT (protocol lines 11, 13, 14): what living workers do for jobs that nobody moves.

The sweeper's patience is left out: it sends as soon as nobody holds a message and no producer is about to
send one. What impatience would add, a needless message, is the scenarios' duplicate.
"""

from __future__ import annotations

from protocol import calls
from protocol.actor import STEP, Actor, Move, Moves
from protocol.script_server import PAST
from protocol.workers import filed, named
from protocol.world import FINAL, JOB_IDS, SUBMITTED, UP, WORKER_IDS, State

from pagefleet.api.contract import keys


class Reaper(Actor):
    """It looks, then it acts: the worker that it found dead may be back by then."""

    def moves(self, state: State) -> Moves:
        for index, me in enumerate(state.workers):
            if me.mode != UP:
                continue
            if me.reaping is None:
                yield from self._look(state, index)
            else:
                dead = WORKER_IDS[me.reaping]
                after = state.with_worker(index, reaping=None)
                for job, num_messages in enumerate(state.unacked[me.reaping]):
                    if num_messages:
                        name = named(index, f"puts back {dead}'s message of", job)
                        yield Move(name, STEP, after.restore(me.reaping, job))
                yield Move(named(index, f"leaves {dead} alone"), STEP, after)

    def _look(self, state: State, index: int) -> Moves:
        keyspace = self.keyspace(state)
        for other, other_id in enumerate(WORKER_IDS):
            is_known = other_id in keyspace.members(keys.WORKERS)
            if other != index and is_known and not keyspace.has_lease(other_id) and any(state.unacked[other]):
                after = state.with_worker(index, reaping=other)
                yield Move(named(index, f"finds {other_id} dead"), STEP, after)


class Auditor(Actor):
    """A worker compares what is said to be its own with what it knows."""

    def moves(self, state: State) -> Moves:
        for index, me in enumerate(state.workers):
            if me.mode != UP:
                continue
            for job in range(len(state.queue)):
                run = me.runs[job]
                num_known = me.inbox.count(job) + (run is not None and run.has_message)
                if state.unacked[index][job] > num_known:
                    name = named(index, "puts back its own forgotten message of", job)
                    yield Move(name, STEP, state.restore(index, job))
                fields = self.job(state, job) or {}
                owned = (fields.get("state"), fields.get("owner")) == ("R", WORKER_IDS[index])
                if owned and run is None and job not in me.inbox and me.popped != job:
                    after, _ = self.call(state, calls.release, index, job, int(fields["epoch"]))
                    yield Move(named(index, "audit: gives back what it does not know:", job), STEP, after)


class Sweeper(Actor):
    """Whichever living worker has the lock; nothing depends on which one it is."""

    def moves(self, state: State) -> Moves:
        if not any(worker.mode == UP for worker in state.workers):
            return
        for job_id in self.keyspace(state).members(keys.open_jobs(calls.QUEUE)):
            yield from self._look_at(state, JOB_IDS.index(job_id), f"sweeper: {{}} {job_id}".format)

    def _look_at(self, state: State, job: int, name) -> Moves:
        fields = self.job(state, job)
        if fields is None:
            yield Move(name("forgets"), STEP, self.call(state, calls.close, job)[0])
            return
        if fields["state"] in FINAL:
            after = filed(self.server, state, job, fields)
            if after != state:
                yield Move(name("writes the result of"), STEP, after)
            else:
                yield Move(name("closes"), STEP, self.call(state, calls.close, job)[0])
            return
        if fields["state"] == "Q" and PAST in (fields["deadline"], fields.get("refused_until")):
            yield Move(name("expires"), STEP, self.call(state, calls.expire, job)[0])
        if self._has_no_client(state, fields) and fields.get("cancel") != "1":
            yield Move(name("cancels the orphan"), STEP, self.call(state, calls.cancel, job)[0])
        if "not_before" in fields and fields["state"] == "Q":
            made_with = fields.get("fingerprint", "")
            has_worker = any(each.mode == UP and f'"{each.weights}"' in made_with for each in state.workers)
            yield Move(name("finds due"), STEP, self.call(state, calls.due, job, has_worker)[0])
            return
        waits = fields["state"] == "Q" or not self.keyspace(state).has_lease(fields["owner"])
        if waits and not state.is_held(job) and state.clients[job].phase != SUBMITTED:
            yield Move(name("sends again"), STEP, state.enqueue(job))

    def _has_no_client(self, state: State, fields) -> bool:
        clients = fields["clients"].split()
        known = self.keyspace(state).by_name
        return bool(clients) and not any(keys.client(client) in known for client in clients)
