"""What the clients saw: each stream token by token, and the verdict against the calm run."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from ops.chaos.workload import Outcome

Style = Literal["sync", "async"]


class Verdict(NamedTuple):
    """Tokens that never came, that came more than once, that are not the calm run's. A stream without an
    end loses at least one; a wrong text or finish reason changes one."""

    lost: int = 0
    doubled: int = 0
    changed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        return self.lost == self.doubled == self.changed == 0


@dataclass(slots=True)
class StreamLog:
    """One job as its readers saw it, in the order in which it came."""

    job_id: str
    fields: dict[str, Any]
    tokens: dict[int, int] = field(default_factory=dict)
    times_seen: Counter[int] = field(default_factory=Counter)
    altered: int = 0
    text: str = ""
    moments: list[float] = field(default_factory=list)
    first_token_at: float | None = None
    begun: bool = False
    ended: bool = False
    finish_reason: str | None = None
    error: str | None = None

    def feed(self, event: Mapping[str, Any]) -> None:
        self.moments.append(event["t"])
        match event["kind"]:
            case "begun":
                self.begun = True
            case "chunk":
                self.first_token_at = self.first_token_at or event["t"]
                self._feed_chunk(event["offset"], event["token_ids"], event["text"])
            case "end":
                self.finish_reason, self.ended = event["finish_reason"], True
            case "error":
                self.error, self.ended = event["error"], True

    def _feed_chunk(self, offset: int, token_ids: list[int], text: str) -> None:
        for index, token in enumerate(token_ids, offset):
            self.times_seen[index] += 1
            self.altered += self.tokens.setdefault(index, token) != token
        self.text += text

    @property
    def longest_silence_s(self) -> float:
        return max((later - earlier for earlier, later in pairwise(self.moments)), default=0.0)

    def judge(self, calm: Outcome) -> Verdict:
        expected = dict(enumerate(calm.token_ids))
        lost = len(expected.keys() - self.tokens.keys())
        doubled = sum(count - 1 for count in self.times_seen.values())
        changed = self.altered + sum(expected.get(at) != token for at, token in self.tokens.items())
        notes = []
        if not self.ended or self.error is not None:
            lost = max(lost, 1)
            notes.append(self.error or "it has not ended")
        elif self.text != calm.text or self.finish_reason != calm.finish_reason:
            changed = max(changed, 1)
            notes.append(
                f"{self.finish_reason} {self.text[-40:]!r}, not {calm.finish_reason} {calm.text[-40:]!r}"
            )
        if lost or doubled or changed:
            notes.append(f"{len(self.tokens)} of {len(expected)} tokens")
        return Verdict(lost, doubled, changed, tuple(f"{self.job_id}: {note}" for note in notes))


class ReaderProcess:
    """A client in a process of its own; what it says is fed to the logs of its streams."""

    def __init__(self, redis_url: str, style: Style) -> None:
        self.style = style
        command = [sys.executable, "-m", "ops.chaos.reader", redis_url, style]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._logs: dict[str, StreamLog] = {}
        self._thread = threading.Thread(target=self._listen, daemon=True, name="reader-pipe")
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def read(self, log: StreamLog, *, attach: bool = False) -> None:
        """Sends a job and reads it, or goes on with one that somebody sent."""
        self._logs[log.job_id] = log
        job = {"job_id": log.job_id, "fields": log.fields, "attach": attach, "after": len(log.tokens)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def forget(self) -> None:
        """The logs of a round that is over."""
        self._logs.clear()

    def kill(self) -> None:
        """SIGKILL; returns when everything that it had said is in the logs."""
        self._process.kill()
        self._process.wait()
        self._thread.join()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith("\n"):
                return  # it died in the middle of a word
            event = json.loads(line)
            log = self._logs.get(event["job_id"])
            if log is not None:
                log.feed(event)
