"""Searches the states of a world: all of them breadth-first, or some of them on random walks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from protocol.actor import FAULT, STEP, Move
from protocol.caretakers import Auditor, Reaper, Sweeper
from protocol.clients import Clients, Fate
from protocol.invariants import Invariants, can_recover
from protocol.script_server import ScriptServer
from protocol.workers import Worker
from protocol.world import WORKER_IDS, State

_WALK_MOVES: Final = 80


@dataclass
class Report:
    """What a search found. ``violations`` and ``stuck`` map a sentence to the shortest trace to it."""

    num_states: int = 0
    num_moves: int = 0
    num_goals: int = 0
    is_complete: bool = True
    seconds: float = 0.0
    violations: dict[str, list[str]] = field(default_factory=dict)
    stuck: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.num_states} states, {self.num_moves} moves, {self.num_goals} goals, "
            f"{self.seconds:.1f} s{'' if self.is_complete else ', NOT ALL STATES'}"
        ]
        for kind, found in (("VIOLATION", self.violations), ("STUCK", self.stuck)):
            for sentence, trace in found.items():
                lines += [f"{kind}: {sentence}", *(f"    {move}" for move in trace)]
        return "\n".join(lines)


class World:
    """All actors: which moves a state has.

    Args:
        worker: another one only to see that the checker notices its mistakes.
    """

    def __init__(self, server: ScriptServer, worker: type[Worker] = Worker) -> None:
        self.server = server
        self.invariants = Invariants(server)
        workers = [worker(server, index) for index in range(len(WORKER_IDS))]
        self._actors = [
            Clients(server), *workers, Reaper(server), Auditor(server), Sweeper(server), Fate(server),
        ]  # fmt: skip

    def moves(self, state: State) -> Iterator[Move]:
        for actor in self._actors:
            yield from actor.moves(state)

    def faults_of(self, before: State, move: Move) -> list[str]:
        over = self.invariants.of_move(before, move.after, move.name)
        return [*over, *self.invariants.of_state(move.after)]


class Explorer:
    """Every state that can be reached, once. Keeps who led to whom, for traces and for the way back.

    Args:
        limit: of states.
        until_wrong: ends the search at the first violation.
    """

    def __init__(self, world: World, limit: int = 2_000_000, *, until_wrong: bool = False) -> None:
        self._world = world
        self._limit = limit
        self._until_wrong = until_wrong
        self._states: list[State] = []
        self._numbers: dict[State, int] = {}
        self._came_from: list[tuple[int, str]] = []
        self._steps_to: list[list[int]] = []
        self.report = Report()

    def explore(self, first: State) -> Report:
        begun_at = time.monotonic()
        self._add(first, -1, "")
        waiting = deque([0])
        while waiting and self.report.is_complete:
            number = waiting.popleft()
            state = self._states[number]
            for move in self._world.moves(state):
                if move.after != state:
                    self._follow(number, move, waiting)
            if self._until_wrong and self.report.violations:
                self.report.is_complete = False
        self._find_stuck()
        self.report.num_states = len(self._states)
        self.report.seconds = time.monotonic() - begun_at
        return self.report

    def _follow(self, number: int, move: Move, waiting: deque[int]) -> None:
        self.report.num_moves += 1
        after = self._numbers.get(move.after)
        if after is None:
            after = self._add(move.after, number, move.name)
            waiting.append(after)
            self.report.is_complete = after < self._limit
            sentences = self._world.faults_of(self._states[number], move)
        else:
            sentences = self._world.invariants.of_move(self._states[number], move.after, move.name)
        if move.kind == STEP:
            self._steps_to[after].append(number)
        for sentence in sentences:
            if sentence not in self.report.violations:
                self.report.violations[sentence] = [*self._trace(number), move.name]

    def _add(self, state: State, came_from: int, name: str) -> int:
        number = self._numbers[state] = len(self._states)
        self._states.append(state)
        self._came_from.append((came_from, name))
        self._steps_to.append([])
        return number

    def _trace(self, number: int) -> list[str]:
        names = []
        while self._came_from[number][0] >= 0:
            number, name = self._came_from[number]
            names.append(name)
        return names[::-1]

    def _find_stuck(self) -> None:
        """Backwards from the goals along the moves that actors make by themselves."""
        if not self.report.is_complete:
            return
        goals = [n for n, state in enumerate(self._states) if self._world.invariants.is_goal(state)]
        self.report.num_goals = len(goals)
        arrives = set(goals)
        while goals:
            for before in self._steps_to[goals.pop()]:
                if before not in arrives:
                    arrives.add(before)
                    goals.append(before)
        for number, state in enumerate(self._states):
            if number not in arrives and can_recover(state):
                sentence = describe(self._world.server, state)
                if len(self.report.stuck) < 5 and sentence not in self.report.stuck:
                    self.report.stuck[sentence] = self._trace(number)


def describe(server: ScriptServer, state: State) -> str:
    jobs = [server[state.keyspace].job(job_id) for job_id in ("a", "b")]
    states = [job and (job["state"], job.get("owner", "-")) for job in jobs]
    results = [server[state.keyspace].result(job_id) for job_id in ("a", "b")]
    return (
        f"jobs {states}, queue {state.queue}, unacked {state.unacked}, results {results}, "
        f"workers {[(w.mode, w.runs) for w in state.workers]}, clients {[tuple(c) for c in state.clients]}"
    )


def walk(
    world: World, first: State, choose: Callable[[list[Move]], Move], fault_at: Callable[[], bool]
) -> Iterator[str]:
    """One random walk, until nothing moves any more: what was wrong on it, and whether a goal can be reached
    from where it ended.

    Args:
        choose: one of several moves.
        fault_at: whether a fault happens now; all at once, right at the beginning, they would show little.
    """
    state, trace = first, []
    for _ in range(_WALK_MOVES):
        moves = [move for move in world.moves(state) if move.after != state]
        faults = [move for move in moves if move.kind == FAULT]
        steps = [move for move in moves if move.kind != FAULT]
        if not moves:
            break
        move = choose(faults if faults and (not steps or fault_at()) else steps)
        trace.append(move.name)
        wrong = world.faults_of(state, move)
        if wrong:
            yield "\n    ".join([*wrong, *trace])
            return
        state = move.after
    if can_recover(state) and reaches_goal(world, state) is False:
        yield "\n    ".join([f"no goal from {describe(world.server, state)}", *trace])


def reaches_goal(world: World, first: State, limit: int = 20_000) -> bool | None:
    """Depth first, by the actors' own moves; None where the limit came before the answer."""
    seen, waiting = {first}, [first]
    while waiting:
        state = waiting.pop()
        if world.invariants.is_goal(state):
            return True
        if len(seen) > limit:
            return None
        for move in world.moves(state):
            if move.kind == STEP and move.after not in seen:
                seen.add(move.after)
                waiting.append(move.after)
    return False
