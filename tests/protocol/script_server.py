"""The real scripts on a real Valkey as a function: (all that the server holds, call) -> (what it holds then,
reply, what it published).

Every keyspace that was ever seen has a number. For a call the numbered keyspace is written into the empty
server, the script runs, and what the server then holds is read back: one round trip. The scripts depend on
nothing but the keyspace, their arguments and whether a deadline is past, so the same call on the same
keyspace runs only once: 150,000 states ask the server a few thousand times.

Time stands still: timestamps are written as 1, a deadline is far away or past, an expiry is a yes or no, and
an API key's tokens do not come back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import redis

from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import split_events
from pagefleet.api.protocol.operation_types import Operation
from pagefleet.api.protocol.scripts import load_script

PAST: Final = "1"
FAR: Final = "99999999999999"
_YEAR_MS: Final = 365 * 86_400_000
_TIMES: Final = ("enqueued_at", "claimed_at", "first_token_at", "ended_at")
_DONE: Final = "checker:done"

_DUMP: Final = """
local read = { hash = { 'HGETALL' }, list = { 'LRANGE', 0, -1 }, zset = { 'ZRANGE', 0, -1 },
  set = { 'SMEMBERS' }, string = { 'GETRANGE', 0, -1 } }
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  local command, first, last = unpack(read[kind])
  local value = first and redis.call(command, key, first, last) or redis.call(command, key)
  found[#found + 1] = { key, kind, redis.call('PTTL', key) >= 0 and 1 or 0, value }
end
return found
"""


class Key(NamedTuple):
    """One key of the server. ``value`` is sorted where the server keeps no order."""

    name: str
    kind: str
    expires: bool
    value: tuple[Any, ...]


class Line(NamedTuple):
    """One published event."""

    channel: str
    job_id: str
    kind: str
    body: str


class Outcome(NamedTuple):
    keyspace: int
    reply: Any
    lines: tuple[Line, ...]


class Keyspace:
    """What the server holds, for the actors to look at."""

    def __init__(self, content: tuple[Key, ...]) -> None:
        self.content = content
        self.by_name = {key.name: key for key in content}
        self._hashes = {key.name: dict(key.value) for key in content if key.kind == "hash"}

    def job(self, job_id: str) -> Mapping[str, str] | None:
        return self._hashes.get(keys.job(job_id))

    def num_tokens(self, job_id: str) -> int:
        return int((self.job(job_id) or {}).get("n:0", "0"))

    def num_left(self, key_id: str) -> int:
        """Tokens of an API key's minute."""
        return int(self._hashes[keys.rate(key_id)]["tokens"])

    def total_stored(self, tenant: str) -> int:
        return int(self._hashes.get(keys.stored_bytes(tenant), {}).get("total", 0))

    def log(self, job_id: str) -> tuple[str, ...]:
        return self.members(keys.log(job_id))

    def members(self, name: str) -> tuple[str, ...]:
        key = self.by_name.get(name)
        return () if key is None else key.value

    def result(self, job_id: str) -> str:
        """Celery's state of a job; '' where none is stored."""
        stored = self.members(keys.result(job_id))
        return json.loads(stored[0])["status"] if stored else ""

    def expires(self, name: str) -> bool:
        return self.by_name[name].expires

    def has_lease(self, worker_id: str) -> bool:
        return keys.lease(worker_id) in self.by_name


class Broken(NamedTuple):
    """A script with a fault: ``old`` is replaced where it stands, exactly once."""

    script: str
    old: str
    new: str


class ScriptServer:
    """See the module's docstring.

    Args:
        broken: the scripts to break on the way to the server, to see that the checker notices.
    """

    def __init__(self, url: str, broken: tuple[Broken, ...] = ()) -> None:
        self._redis: Any = redis.Redis.from_url(url, decode_responses=True)
        self._heard: Any = self._redis.pubsub()
        self._heard.psubscribe(keys.PREFIX + "*", _DONE)
        for _ in range(2):
            assert self._heard.get_message(timeout=5)["type"] == "psubscribe"
        self._broken = broken
        self._sources: dict[str, str] = {}
        self._numbers: dict[tuple[Key, ...], int] = {}
        self._keyspaces: list[Keyspace] = []
        self._known: dict[Any, Any] = {}
        self.empty = self._number(())

    def disconnect(self) -> None:
        self._heard.close()
        self._redis.close()

    @property
    def num_calls(self) -> int:
        return len(self._known)

    def __getitem__(self, number: int) -> Keyspace:
        return self._keyspaces[number]

    def run(self, number: int, build: Callable[..., Operation[Any]], *args: Any) -> Outcome:
        """The operation that ``build(*args)`` makes, on that keyspace."""
        call = (number, build, args)
        outcome = self._known.get(call)
        if outcome is None:
            outcome = self._known[call] = self._run(number, build(*args))
        return outcome

    def without(self, number: int, name: str) -> int:
        """One key less: a lease that ran out, a client that went silent."""
        return self._number(tuple(key for key in self[number].content if key.name != name))

    def with_fields(self, number: int, name: str, **fields: str) -> int:
        """Other values in a hash: a deadline that passed, a past that would take long to live through."""
        content = []
        for key in self[number].content:
            if key.name == name:
                key = key._replace(value=tuple(sorted((dict(key.value) | fields).items())))
            content.append(key)
        return self._number(tuple(content))

    def with_string(self, number: int, name: str, value: str = "1") -> int:
        """A key that is there until it expires."""
        others = [key for key in self[number].content if key.name != name]
        return self._number(tuple(sorted([*others, Key(name, "string", True, (value,))])))

    def _number(self, content: tuple[Key, ...]) -> int:
        number = self._numbers.setdefault(content, len(self._keyspaces))
        if number == len(self._keyspaces):
            self._keyspaces.append(Keyspace(content))
        return number

    def _run(self, number: int, operation: Operation[Any]) -> Outcome:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.flushdb()
        for key in self[number].content:
            _restore(pipeline, key)
        pipeline.eval(self._source(operation.script), len(operation.keys), *operation.keys, *operation.args)
        pipeline.eval(_DUMP, 0)
        pipeline.publish(_DONE, "")
        *_restored, reply, found, _ = pipeline.execute()
        content = tuple(sorted(_key(*each) for each in found))
        return Outcome(self._number(content), operation.parse(reply), tuple(self._lines()))

    def _lines(self) -> list[Line]:
        lines = []
        while True:
            message = self._heard.get_message(timeout=5)
            if message["channel"] == _DONE:
                return lines
            lines += [Line(message["channel"], *event) for event in split_events(message["data"])]

    def _source(self, name: str) -> str:
        if name not in self._sources:
            source = load_script(name).source
            for fault in self._broken:
                if fault.script == name:
                    assert source.count(fault.old) == 1, f"{name}: {fault.old!r} stands not once in it"
                    source = source.replace(fault.old, fault.new)
            self._sources[name] = source
        return self._sources[name]


def _key(name: str, kind: str, expires: int, value: Any) -> Key:
    if kind == "hash":
        fields = dict(zip(value[::2], value[1::2], strict=True))
        content = tuple(sorted((field, _timeless(field, text)) for field, text in fields.items()))
    elif kind == "string":
        content = (value,)
    else:
        content = tuple(value) if kind == "list" else tuple(sorted(value))
    return Key(name, kind, bool(expires), content)


def _timeless(field: str, value: str) -> str:
    if field == "at":
        return FAR
    if field in ("deadline", "not_before", "refused_until"):
        return PAST if value == PAST else FAR
    return "1" if field in _TIMES else value


def _restore(pipeline: Any, key: Key) -> None:
    name, value = key.name, key.value
    if key.kind == "hash":
        pipeline.hset(name, mapping=dict(value))
    elif key.kind == "list":
        pipeline.rpush(name, *value)
    elif key.kind == "zset":
        pipeline.zadd(name, dict.fromkeys(value, 1))
    elif key.kind == "set":
        pipeline.sadd(name, *value)
    else:
        pipeline.set(name, *value)
    if key.expires:
        pipeline.pexpire(name, _YEAR_MS)
