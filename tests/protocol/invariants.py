"""What must hold in every state, over every move, and at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache

from protocol import calls
from protocol.script_server import FAR, Keyspace, ScriptServer
from protocol.world import FINAL, GONE, JOB_IDS, LEFT, NUM_TOKENS, RESULT_OF, UP, WORKER_IDS, State

from pagefleet.api.contract import keys
from pagefleet.api.protocol.operation_types import StepStatus

PASSED = (StepStatus.OK, StepStatus.CANCEL, StepStatus.DEADLINE)
MAX_BLAME, MAX_FRUITLESS = 3, 10


class Invariants:
    def __init__(self, server: ScriptServer) -> None:
        self.server = server
        self._of_keyspace: dict[int, list[str]] = {}

    def of_state(self, state: State) -> list[str]:
        """What is wrong in a state."""
        if state.keyspace not in self._of_keyspace:
            self._of_keyspace[state.keyspace] = list(_of_keyspace(self.server[state.keyspace]))
        return [
            *self._of_keyspace[state.keyspace],
            *_of_clients(state),
            *self._of_fence(state),
            *self._of_first_prefills(state),
        ]

    def _of_first_prefills(self, state: State) -> Iterator[str]:
        """Each job in its first prefill is a suspect, and a solo job is the only one."""
        keyspace = self.server[state.keyspace]
        for worker_id, worker in zip(WORKER_IDS, state.workers, strict=True):
            suspects = []
            for job_id, run in zip(JOB_IDS, worker.runs, strict=False):
                fields = keyspace.job(job_id) or {}
                owner, epoch = fields.get("owner"), fields.get("epoch")
                if run is None or run.is_forgotten or fields.get("state") != "R":
                    continue
                if (owner, epoch) == (worker_id, str(run.epoch)) and keyspace.has_lease(worker_id):
                    if fields["suspect"] == "1":
                        suspects.append(run.is_solo)
                    elif run.is_begun and not run.made:
                        yield "a first prefill reached the device without a mark"
            if len(suspects) > 1 and any(suspects):
                yield "a solo job is a suspect beside another one"

    def _of_fence(self, state: State) -> Iterator[str]:
        """Asked of the script itself, not of the hash that it looks at."""
        for job in range(len(state.queue)):
            runs = [(index, worker.runs[job]) for index, worker in enumerate(state.workers)]
            passed = 0
            for index, run in runs:
                if run is not None and run.epoch:
                    reply = self.server.run(state.keyspace, calls.ask, index, job, run.epoch).reply
                    passed += reply[0].status in PASSED
            if passed > 1:
                yield "two workers pass the fence"

    def of_move(self, before: State, after: State, name: str) -> Iterator[str]:
        """What a move must not do. A server that forgets may do anything."""
        if before.keyspace == after.keyspace or name.startswith("server:"):
            return
        old, new = self.server[before.keyspace], self.server[after.keyspace]
        yield from _of_charges(old, new)
        for job, job_id in enumerate(JOB_IDS[: len(before.queue)]):
            yield from _of_result(old.result(job_id), new.result(job_id), new.job(job_id))
            was, now = old.job(job_id), new.job(job_id)
            tombstone = keys.deleted(job_id)
            has_tombstone = tombstone in new.by_name and new.expires(tombstone)
            if "DELETE" in name and was is not None and not has_tombstone:
                yield "a deleted job left no tombstone, or one that never expires"
            if (
                was is None
                and now is not None
                and tombstone in old.by_name
                and name != f"client {job_id}: submit"
            ):
                yield "a deleted job is computed again"
            if was is None or now is None:
                continue
            if was["state"] in FINAL and now["state"] != was["state"]:
                yield f"a final state changed from {was['state']} to {now['state']}"
            is_early = was.get("not_before") == FAR and "refused" not in was
            if was["state"] == "Q" and now["state"] == "R" and is_early:
                yield "a job was claimed before its time"
            if name.endswith("REVOKE") and was["state"] == "R":
                yield "a revoke met a job that runs"
            if now.get("owner") and now["epoch"] != was["epoch"] and not old.has_lease(now["owner"]):
                yield "a worker claimed without a lease"
            if len(new.log(job_id)) > len(old.log(job_id)):
                if not name.startswith(f"{now['owner']}: "):
                    yield "a worker wrote to the log of a job that another owns"
                if was["state"] in FINAL:
                    yield "tokens were logged after the end"
            yield from _of_weights(was, now, name)
            yield from self._of_blame(before, job, was, now)

    def _of_blame(
        self, before: State, job: int, was: Mapping[str, str], now: Mapping[str, str]
    ) -> Iterator[str]:
        fruitless = int(now.get("fruitless", "0")) - int(was.get("fruitless", "0"))
        blame = int(now.get("blame", "0")) - int(was.get("blame", "0"))
        if fruitless <= 0 and blame <= 0:
            return
        owner = WORKER_IDS.index(was["owner"]) if was.get("owner") else None
        left = owner is None or before.workers[owner].mode == GONE
        if left or was["state"] != "R" or self.server[before.keyspace].has_lease(was["owner"]):
            yield "a death was counted where nobody died"
            return
        company = self._suspects_with(before, was["owner"])
        if blame > 0 and job not in company:
            yield "a bystander was blamed"
        if blame > 0 and company - {job}:
            yield "one of several suspects was blamed"
        if blame == 0 and company == {job} and now.get("solo") != "1":
            yield "the only suspect was neither blamed nor left alone for its next try"

    def _suspects_with(self, state: State, owner: str) -> frozenset[int]:
        """Who was in its first prefill when that worker was last alive: those that still stand so, and those
        that stood so when its lease ran out and went another way since."""
        then = state.workers[WORKER_IDS.index(owner)].first_prefills
        now = set()
        for job, job_id in enumerate(JOB_IDS[: len(state.queue)]):
            fields = self.server[state.keyspace].job(job_id)
            if fields is not None and (fields["state"], fields.get("owner")) == ("R", owner):
                is_one = fields["suspect"] == "1"
            else:
                is_one = job in then
            if is_one:
                now.add(job)
        return frozenset(now)

    def is_goal(self, state: State) -> bool:
        """Every job ended, closed, filed and told; no message left; every worker idle."""
        return (
            not any(state.queue)
            and not any(any(mine) for mine in state.unacked)
            and all(_is_idle(worker) for worker in state.workers if worker.mode == UP)
            and all(self._is_done(state, job) for job in range(len(state.queue)))
        )

    def _is_done(self, state: State, job: int) -> bool:
        keyspace, client = self.server[state.keyspace], state.clients[job]
        fields = keyspace.job(JOB_IDS[job])
        if JOB_IDS[job] in keyspace.members(keys.open_jobs(calls.QUEUE)):
            return False
        if not (client.end or client.phase == LEFT):
            return False
        result = keyspace.result(JOB_IDS[job])
        if fields is None:
            return not result
        return fields["state"] in FINAL and result == RESULT_OF[fields["state"]]


def _of_result(old: str, new: str, fields: Mapping[str, str] | None) -> Iterator[str]:
    """STARTED is what a claim of a job that goes on stores, where no final result stands."""
    if new == old or new != "STARTED":
        return
    if old:
        yield f"the result went from {old} to STARTED"
    if fields is None or fields["state"] in FINAL:
        yield "a job that has ended or is gone became STARTED"


def _of_weights(was: Mapping[str, str], now: Mapping[str, str], name: str) -> Iterator[str]:
    """Tokens of two models never stand in one answer; a job that waits for its weights never fails."""
    if "n:0" in was and now.get("fingerprint") != was["fingerprint"]:
        yield "a job went on with other weights"
    if "refused" in was and now["state"] == "F":
        yield "a job that was refused failed"
    if "refused" in now and now["state"] == "R":
        yield "a job that runs counts as refused"
    if "refused" in now and now["state"] == "Q" and ": claim" in name and "not_before" not in now:
        yield "a job was refused and does not wait"


def _of_charges(old: Keyspace, new: Keyspace) -> Iterator[str]:
    """An API key pays for each job once, and for what was computed."""
    owed = 0
    for job_id in JOB_IDS:
        was, now = old.job(job_id), new.job(job_id)
        if was is not None and was["charge"] and (now is None or not now["charge"]):
            owed += old.num_tokens(job_id) - calls.CHARGE.num_reserved
            if was["state"] not in FINAL:
                yield "a job was charged before its end"
    charged = old.num_left(calls.CHARGE.key_id) - new.num_left(calls.CHARGE.key_id)
    if charged != owed:
        yield f"{charged} tokens were charged where {owed} were owed"


def can_recover(state: State) -> bool:
    """Some worker lives; without one, nothing is promised."""
    return any(worker.mode == UP for worker in state.workers)


def _is_idle(worker) -> bool:
    return worker.popped is None and not worker.inbox and not any(worker.runs)


def _of_clients(state: State) -> Iterator[str]:
    for client in state.clients:
        if len(client.end) > 1:
            yield f"a client saw two ends, {' and then '.join(client.end)}"
        if client.end == "D" and client.num_read != NUM_TOKENS:
            yield f"a client saw the end D after {client.num_read} tokens"


def _of_stored(keyspace: Keyspace) -> Iterator[str]:
    """A tenant's bytes are those of its jobs."""
    places = keyspace.members(keys.stored_jobs(calls.TENANT))
    jobs = {job_id: keyspace.job(job_id) for job_id in JOB_IDS}
    if set(places) != {f"{job_id} {job['stored']}" for job_id, job in jobs.items() if job is not None}:
        yield "what counts for a tenant is not what its jobs take"
    if sum(int(place.split()[1]) for place in places) != keyspace.total_stored(calls.TENANT):
        yield "a tenant's total is not the sum of its jobs"
    for name in (keys.stored_jobs(calls.TENANT), keys.stored_bytes(calls.TENANT)):
        if name in keyspace.by_name and not keyspace.expires(name):
            yield "what counts for a tenant never expires"


def _of_keyspace(keyspace: Keyspace) -> Iterator[str]:
    yield from _of_stored(keyspace)
    for job_id in JOB_IDS:
        fields = keyspace.job(job_id)
        if fields is None:
            if keyspace.log(job_id):
                yield "a log without its hash"
            if keyspace.result(job_id) == "STARTED":
                yield "a job that is gone is STARTED for ever"
            continue
        yield from _of_log(keyspace, job_id, fields)
        yield from _of_ledgers(keyspace, job_id, fields)
        yield from _of_suspicion(keyspace, job_id, fields)


def _of_log(keyspace: Keyspace, job_id: str, fields: Mapping[str, str]) -> Iterator[str]:
    tokens = [token for entry in keyspace.log(job_id) for token in _entry(entry)]
    if tokens != list(range(keyspace.num_tokens(job_id))):
        yield f"the log holds the tokens {tokens} where {keyspace.num_tokens(job_id)} are counted"
    if fields["state"] == "D" and len(tokens) != NUM_TOKENS:
        yield f"D with {len(tokens)} tokens"


@cache
def _entry(text: str) -> list[int]:
    entry = json.loads(text)
    first = entry.get("offset", 0)
    assert entry["token_ids"] == list(range(first, first + len(entry["token_ids"])))
    return entry["token_ids"]


def _of_ledgers(keyspace: Keyspace, job_id: str, fields: Mapping[str, str]) -> Iterator[str]:
    is_open = job_id in keyspace.members(keys.open_jobs(calls.QUEUE))
    if is_open != (job_id in keyspace.members(keys.tenant_jobs(calls.QUEUE, calls.TENANT))):
        yield "the queue's and the tenant's ledger differ"
    newest = keys.recent_jobs(calls.TENANT)
    if (job_id in keyspace.members(newest)) == (fields.get("ttl") == "0"):
        yield "a job is not among its tenant's newest, or is although it was deleted"
    if newest in keyspace.by_name and not keyspace.expires(newest):
        yield "the list of a tenant's newest jobs never expires"
    if fields["charge"] and not is_open:
        yield "a job was closed and never charged"
    if fields["state"] not in FINAL and not is_open:
        yield "a job that has not ended left its ledger"
    for name in (keys.job(job_id), keys.log(job_id)):
        if name in keyspace.by_name and keyspace.expires(name) == is_open:
            yield f"{name} {'expires while it is open' if is_open else 'never expires'}"
    if fields["state"] == "X" and fields.get("ttl") != "0" and job_id not in keyspace.members(keys.DEAD):
        yield "a job was given up and is no dead letter"


def _of_suspicion(keyspace: Keyspace, job_id: str, fields: Mapping[str, str]) -> Iterator[str]:
    is_suspect = fields.get("suspect") == "1"
    # A worker whose engine failed marks what its last step computed, and is gone.
    is_left = fields["state"] == "R" and not keyspace.has_lease(fields["owner"])
    if is_suspect and not is_left and (fields["state"] != "R" or keyspace.num_tokens(job_id)):
        yield "a job is suspect although its first prefill is over"
    if is_suspect and job_id not in keyspace.members(keys.suspects(fields["owner"])):
        yield "a suspect is missing from its worker's list"
    given_up = (
        int(fields.get("blame", "0")) >= MAX_BLAME or int(fields.get("fruitless", "0")) >= MAX_FRUITLESS
    )
    if given_up and fields["state"] != "X":
        yield "a job above its cap of deaths was not given up"
    if fields.get("fruitless") == str(MAX_FRUITLESS - 1) and fields.get("solo") != "1":
        yield "the last try is not solo"
