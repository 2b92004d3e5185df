"""Workers that send MARK wrongly, each with the scenario that must notice it."""

from __future__ import annotations

from typing import NamedTuple

from protocol.scenarios import Scenario, begun, begun_pair
from protocol.workers import Worker
from protocol.world import Run, State


class Hasty(Worker):
    """Begins a first prefill while its MARK is on its way."""

    def _may_begin(self, run: Run) -> bool:
        return True


class Together(Worker):
    """Marks a job that must begin alone together with others."""

    def _may_mark(self, state: State, job: int, run: Run) -> bool:
        return True


class Unordered(Worker):
    """Takes a job for started when it has computed a token, sent or not, and marks the next one."""

    def _may_mark(self, state: State, job: int, run: Run) -> bool:
        others = [other for other in state.workers[self.index].runs if other is not None and other is not run]
        return not any(other.is_starting and not other.made for other in others)


class WorkerMistake(NamedTuple):
    worker: type[Worker]
    scenario: Scenario
    finds: str
    """Part of what the checker says."""


WORKER_MISTAKES = [
    WorkerMistake(Hasty, begun(), "a first prefill reached the device without a mark"),
    WorkerMistake(Together, begun_pair(solo="1"), "a solo job is a suspect beside another one"),
    WorkerMistake(Unordered, begun_pair(solo="1"), "a solo job is a suspect beside another one"),
]
