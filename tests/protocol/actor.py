"""What all actors share: a call of the real server, and clients that hear what it published."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from protocol.script_server import Keyspace, Line, ScriptServer
from protocol.world import JOB_IDS, READING, SUBMITTED, State

from pagefleet.api.contract import keys
from pagefleet.api.protocol.operation_types import Operation

STEP: Final = "step"
"""What an actor does by itself. Every state must reach its goal by such moves alone."""
FAULT: Final = "fault"
"""What happens at most as often as the scenario says."""
CHANCE: Final = "chance"
"""What may happen but must not be relied on: a paused process goes on."""


class Move(NamedTuple):
    name: str
    kind: str
    after: State


Moves = Iterator[Move]


class Actor:
    def __init__(self, server: ScriptServer) -> None:
        self.server = server

    def keyspace(self, state: State) -> Keyspace:
        return self.server[state.keyspace]

    def job(self, state: State, job: int) -> Mapping[str, str] | None:
        return self.keyspace(state).job(JOB_IDS[job])

    def call(self, state: State, build: Callable[..., Operation[Any]], *args: Any) -> tuple[State, Any]:
        """Runs a script for real; the clients hear what it published."""
        outcome = self.server.run(state.keyspace, build, *args)
        state = state._replace(keyspace=outcome.keyspace)
        for line in outcome.lines:
            state = hear(state, line)
        return state, outcome.reply


def hear(state: State, line: Line) -> State:
    job = JOB_IDS.index(line.job_id)
    client = state.clients[job]
    if not client.is_subscribed or client.phase not in (SUBMITTED, READING):
        return state
    if not line.channel.startswith(keys.reply_channel("")):
        return state
    body = _parsed(line.body)
    if line.kind == "t":
        first, behind = body.get("offset", 0), body.get("offset", 0) + len(body["token_ids"])
        if first <= client.num_read < behind:
            state = state.with_client(job, num_read=behind)
    elif line.kind == "e" and client.num_read >= body["num_tokens"][0]:
        state = learn_end(state, job, body["state"])
    return state


def learn_end(state: State, job: int, end: str) -> State:
    """A second, different end is kept too: :mod:`protocol.invariants` finds it."""
    seen = state.clients[job].end
    return state if end in seen else state.with_client(job, end=seen + end)


@cache
def _parsed(body: str) -> Any:
    return json.loads(body)
