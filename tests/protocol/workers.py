"""A worker from its queue to its acknowledgement: POP, CLAIM, MARK, STEP, END, CLOSE, DRAIN; its faults."""

from __future__ import annotations

from collections.abc import Callable

from protocol import calls
from protocol.actor import CHANCE, FAULT, STEP, Actor, Move, Moves
from protocol.clients import drop_connection
from protocol.script_server import ScriptServer
from protocol.world import (
    CLAIMED,
    CLOSED,
    CLOSING,
    DEAD,
    DRAINING,
    ENDING,
    FILED,
    FINAL,
    GONE,
    JOB_IDS,
    NUM_TOKENS,
    PAUSED,
    RESULT_OF,
    RUNNING,
    UP,
    WEDGED,
    WORKER_IDS,
    Run,
    State,
    put,
)

from pagefleet.api.contract import keys
from pagefleet.api.protocol.operation_types import ClaimVerdict, StepStatus

NOTHING = frozenset[int]()


def named(worker: int, what: str, job: int | None = None) -> str:
    return f"{WORKER_IDS[worker]}: {what}" + ("" if job is None else f" {JOB_IDS[job]}")


class Worker(Actor):
    """One of them. ``index`` is its number.

    A worker whose lease is over still sends: between its look at the clock and the arrival of a call it may
    have been paused for any time.
    """

    def __init__(self, server, index: int) -> None:
        super().__init__(server)
        self.index = index
        self.worker_id = WORKER_IDS[index]

    def moves(self, state: State) -> Moves:
        me = state.workers[self.index]
        yield from self._lease(state, me.mode)
        yield from self._faults(state, me.mode)
        if me.mode in (UP, WEDGED, DRAINING):
            yield from self._receive(state, me.mode)
        if me.mode in (UP, WEDGED):
            for job in sorted(set(me.inbox)):
                yield from self._or_reply_lost(state, self._claim, job, "claim")
        if me.mode in (UP, DRAINING):
            for job, run in enumerate(me.runs):
                if run is not None:
                    yield from self._go_on(state, job, run)
        if me.mode == DRAINING:
            yield from self._drain(state)

    # BEAT, and what takes a lease away.

    def _lease(self, state: State, mode: str) -> Moves:
        has_lease = self.keyspace(state).has_lease(self.worker_id)
        is_known = self.worker_id in self.keyspace(state).members(keys.WORKERS)
        if mode == UP and not (has_lease and is_known):
            after, _ = self.call(state, calls.beat, self.index)
            yield Move(named(self.index, "beat"), STEP, after.with_worker(self.index, first_prefills=NOTHING))
        if has_lease and mode in (PAUSED, WEDGED, DEAD):
            yield Move(named(self.index, "lease runs out"), STEP, self._without_lease(state))
        if mode == WEDGED and not has_lease:
            yield Move(named(self.index, "watchdog ends it"), STEP, self._ended(state, DEAD))

    def _without_lease(self, state: State) -> State:
        lost = (self._is_in_first_prefill(state, job) for job in range(len(state.queue)))
        suspects = frozenset(job for job, is_suspect in enumerate(lost) if is_suspect)
        after = state.with_worker(self.index, first_prefills=suspects)
        return after._replace(keyspace=self.server.without(state.keyspace, keys.lease(self.worker_id)))

    def _is_in_first_prefill(self, state: State, job: int) -> bool:
        fields = self.job(state, job) or {}
        mine = (fields.get("state"), fields.get("owner")) == ("R", self.worker_id)
        return mine and fields["suspect"] == "1"

    def _ended(self, state: State, mode: str) -> State:
        return state.with_worker(
            self.index, mode=mode, runs=(None,) * len(state.queue), popped=None, inbox=(), reaping=None
        )

    def _faults(self, state: State, mode: str) -> Moves:
        if mode not in (DEAD, GONE) and state.may("death"):
            yield Move(named(self.index, "KILLED"), FAULT, self._ended(state.spend("death"), DEAD))
        if mode == PAUSED:
            yield Move(named(self.index, "goes on"), CHANCE, state.with_worker(self.index, mode=UP))
        if mode != UP:
            return
        for event, turned in (("pause", PAUSED), ("wedge", WEDGED), ("drain", DRAINING)):
            if state.may(event):
                after = state.spend(event).with_worker(self.index, mode=turned)
                yield Move(named(self.index, event.upper()), FAULT, after)
        if state.may("engine failure"):
            yield Move(
                named(self.index, "ENGINE FAILS"), FAULT, self._engine_failed(state.spend("engine failure"))
            )
        if state.may("drop"):
            after = drop_connection(state.spend("drop"), self.index)
            yield Move(named(self.index, "CONNECTION DROP"), FAULT, after)

    def _engine_failed(self, state: State) -> State:
        """Jobs of the last step become suspects: those in their first prefill, or else those with tokens that
        were no suspects before. The others are released, and the worker ends and gives its lease up."""
        runs = state.workers[self.index].runs
        running = [job for job, run in enumerate(runs) if run is not None and run.stage == RUNNING]
        starting = [job for job in running if runs[job].is_begun and not runs[job].made]
        suspects = starting or [job for job in running if runs[job].made and not runs[job].is_solo]
        for job, run in enumerate(runs):
            if job in suspects:
                state, _ = self.call(state, calls.mark, self.index, job, run.epoch)
            elif run is not None and run.stage in (CLAIMED, RUNNING):
                state = self._release(state, job)
        return self._ended(self._without_lease(state), DEAD)

    # POP and CLAIM.

    def _receive(self, state: State, mode: str) -> Moves:
        me = state.workers[self.index]
        if me.popped is not None:
            after = state.with_worker(self.index, popped=None, inbox=(*me.inbox, me.popped))
            after = after.unack(self.index, me.popped, 1)
            yield Move(named(self.index, "writes down that it has the message of", me.popped), STEP, after)
        elif mode != DRAINING and not me.inbox and self.keyspace(state).has_lease(self.worker_id):
            for job, num_messages in enumerate(state.queue):
                if num_messages:
                    after = state._replace(queue=put(state.queue, job, num_messages - 1))
                    after = after.with_worker(self.index, popped=job)
                    yield Move(named(self.index, "BRPOP", job), STEP, after)

    def _claim(self, state: State, job: int) -> State:
        me = state.workers[self.index]
        held = me.runs[job]
        inbox = tuple(each for each in me.inbox if each != job)
        if held is not None:  # adopt the newer message, acknowledge the older
            if held.has_message:
                state = state.unack(self.index, job, -1)
            runs = put(me.runs, job, held._replace(has_message=True))
            return state.with_worker(self.index, inbox=inbox, runs=runs)
        state, reply = self.call(state, calls.claim, self.index, job, me.weights)
        state = state.with_worker(self.index, inbox=inbox)
        match reply.verdict:
            case ClaimVerdict.CLAIMED:
                (n,) = reply.num_tokens
                run = Run(reply.epoch, CLAIMED if n else RUNNING, made=n, sent=n, is_solo=reply.solo)
                return state.with_run(self.index, job, run)
            case ClaimVerdict.FINAL | ClaimVerdict.ENDED:
                return state.with_run(self.index, job, Run(0, CLOSING))
            case ClaimVerdict.NO_LEASE:
                return state.restore(self.index, job)
            case _:
                return state.unack(self.index, job, -1)

    # The job's own way.

    def _go_on(self, state: State, job: int, run: Run) -> Moves:
        is_up = state.workers[self.index].mode == UP
        if run.stage == CLAIMED and is_up:
            yield Move(named(self.index, "read the log of", job), STEP, self._read_log(state, job, run))
        elif run.stage == RUNNING and is_up:
            if run.made or run.is_marked:
                yield from self._or_reply_lost(state, self._step, job, "step")
            elif self._may_mark(state, job, run):
                yield from self._or_reply_lost(state, self._mark, job, "mark")
            if not run.made:
                yield from self._first_prefill(state, job, run)
        elif run.stage == ENDING:
            yield from self._or_reply_lost(state, self._end, job, "end")
        elif run.stage == CLOSING:
            yield Move(named(self.index, "write the result of", job), STEP, self._file(state, job, run))
        elif run.stage == FILED:
            yield from self._or_reply_lost(state, self._close, job, "close")
        elif run.stage == CLOSED:
            yield Move(named(self.index, "acknowledge", job), STEP, self._drop(state, job))

    def _or_reply_lost(self, state: State, act: Callable[[State, int], State], job: int, name: str) -> Moves:
        """The call, and the same call whose reply never came: the server changed, the worker did not."""
        after = act(state, job)
        yield Move(named(self.index, name, job), STEP, after)
        if state.may("lost reply"):
            me = state.workers[self.index]
            run = me.runs[job]
            if run is not None and run.stage == RUNNING:
                me = me._replace(runs=put(me.runs, job, run._replace(made=self._computed(run))))
            lost = after._replace(
                workers=put(state.workers, self.index, me), queue=state.queue, unacked=state.unacked
            )
            yield Move(named(self.index, name + " (REPLY LOST)", job), FAULT, lost.spend("lost reply"))

    @staticmethod
    def _computed(run: Run) -> int:
        """One more token, unless there are some that the server has not confirmed. The first one has a move
        of its own."""
        return min(run.made + 1, NUM_TOKENS) if run.made and run.made == run.sent else run.made

    # MARK is sent while the device computes the step before. The first prefill begins when it is confirmed.

    def _first_prefill(self, state: State, job: int, run: Run) -> Moves:
        if run.is_begun:
            found = state.with_run(self.index, job, run._replace(made=1))
            yield Move(named(self.index, "finds the first token of", job), STEP, found)
        elif self._may_begin(run):
            begun = state.with_run(self.index, job, run._replace(is_begun=True))
            yield Move(named(self.index, "begins the first prefill of", job), STEP, begun)

    def _may_begin(self, run: Run) -> bool:
        return run.is_marked

    def _may_mark(self, state: State, job: int, run: Run) -> bool:
        """A solo job begins alone, and what has been computed is sent before the next MARK."""
        others = [other for other in state.workers[self.index].runs if other is not None and other is not run]
        starting = [other for other in others if other.is_starting]
        has_unsent = any(other.made for other in starting)
        return not has_unsent and not (starting and (run.is_solo or any(other.is_solo for other in starting)))

    def _read_log(self, state: State, job: int, run: Run) -> State:
        if sum(1 for _ in self.keyspace(state).log(JOB_IDS[job])) == run.made:
            return state.with_run(self.index, job, run._replace(stage=RUNNING))
        return state.with_run(self.index, job, run._replace(stage=ENDING, end="F"))

    def _mark(self, state: State, job: int) -> State:
        run = state.workers[self.index].runs[job]
        state, lost = self.call(state, calls.mark, self.index, job, run.epoch)
        if lost:
            return self._drop(state, job)
        return state.with_run(self.index, job, run._replace(is_marked=True))

    def _step(self, state: State, job: int) -> State:
        run = state.workers[self.index].runs[job]
        run = run._replace(made=self._computed(run))
        state, (reply,) = self.call(state, calls.step, self.index, job, run.epoch, run.sent, run.made)
        run = run._replace(sent=reply.num_tokens)
        match reply.status:
            case StepStatus.OK if run.made == NUM_TOKENS:
                run = run._replace(stage=CLOSING)
            case StepStatus.CANCEL:
                run = run._replace(stage=ENDING, end="C")
            case StepStatus.DEADLINE:
                run = run._replace(stage=ENDING, end="F")
            case StepStatus.FENCED | StepStatus.GONE:
                return self._drop(state, job)
        return state.with_run(self.index, job, run)

    def _end(self, state: State, job: int) -> State:
        run = state.workers[self.index].runs[job]
        state, verdict = self.call(state, calls.end, self.index, job, run.epoch, run.end)
        if verdict != "ended":
            return self._drop(state, job)
        return state.with_run(self.index, job, run._replace(stage=CLOSING))

    def _file(self, state: State, job: int, run: Run) -> State:
        fields = self.job(state, job)
        if fields is None or fields["state"] not in FINAL:
            return self._drop(state, job)
        return filed(self.server, state, job, fields).with_run(self.index, job, run._replace(stage=FILED))

    def _close(self, state: State, job: int) -> State:
        run = state.workers[self.index].runs[job]
        state, _ = self.call(state, calls.close, job)
        return state.with_run(self.index, job, run._replace(stage=CLOSED))

    def _drop(self, state: State, job: int) -> State:
        """The job is out of its hands; the message, if it came over this connection, is acknowledged."""
        run = state.workers[self.index].runs[job]
        if run.has_message:
            state = state.unack(self.index, job, -1)
        return state.with_run(self.index, job, None)

    # DRAIN.

    def _drain(self, state: State) -> Moves:
        me = state.workers[self.index]
        if me.popped is not None:
            return
        for job, run in enumerate(me.runs):
            if run is not None and run.stage in (CLAIMED, RUNNING, ENDING):
                yield from self._or_reply_lost(state, self._release, job, "release")
        if any(me.runs):
            return
        for job, num_messages in enumerate(state.unacked[self.index]):
            if num_messages:
                after = state.restore(self.index, job).with_worker(self.index, inbox=())
                yield Move(named(self.index, "put back the message of", job), STEP, after)
        if not any(state.unacked[self.index]):
            after = self._ended(self._without_lease(state), GONE)
            yield Move(named(self.index, "gives its lease up and exits"), STEP, after)

    def _release(self, state: State, job: int) -> State:
        run = state.workers[self.index].runs[job]
        state, _ = self.call(state, calls.release, self.index, job, run.epoch)
        return state.with_run(self.index, job, None)


def filed(server: ScriptServer, state: State, job: int, fields) -> State:
    """CLOSE, first part: Celery's result, unless nothing is to be kept."""
    if fields.get("ttl") == "0":
        return state
    name, meta = keys.result(JOB_IDS[job]), calls.result_meta(RESULT_OF[fields["state"]])
    return state._replace(keyspace=server.with_string(state.keyspace, name, meta))
