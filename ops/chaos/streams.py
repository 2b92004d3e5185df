"""What the clients saw: each stream token by token, and the verdict against the calm run."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from ops.chaos.workload import Outcome, choices_of

Style = Literal["sync", "async", "http"]


class Verdict(NamedTuple):
    """The number of tokens that are missing, repeated, or different from the calm run.

    A stream that has not ended counts as at least one lost token; a wrong text or reason as changed.
    """

    lost: int = 0
    doubled: int = 0
    changed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        return self.lost == self.doubled == self.changed == 0


@dataclass(slots=True)
class StreamLog:
    """One job as its readers saw it, in order of arrival."""

    job_id: str
    fields: dict[str, Any]
    tokens: dict[tuple[int, int], int] = field(default_factory=dict)
    """By choice and index."""
    times_seen: Counter[tuple[int, int]] = field(default_factory=Counter)
    altered: int = 0
    texts: defaultdict[int, str] = field(default_factory=lambda: defaultdict(str))
    moments: list[float] = field(default_factory=list)
    first_token_at: float | None = None
    begun: bool = False
    ended: bool = False
    finish_reasons: list[str | None] = field(default_factory=list)
    error: str | None = None
    cut_at: float | None = None
    cuts_s: list[float] = field(default_factory=list)
    """For each connection that broke off: seconds until the next new event."""

    def feed(self, event: Mapping[str, Any]) -> None:
        self.moments.append(event["t"])
        if self.cut_at is not None:
            self.cuts_s.append(event["t"] - self.cut_at)
            self.cut_at = None
        match event["kind"]:
            case "begun":
                self.begun = True
                # Over HTTP it is the gateway that names a job.
                self.job_id = event.get("answer_id", self.job_id)
            case "cut":
                self.cut_at = event["t"]
            case "chunk":
                self.first_token_at = self.first_token_at or event["t"]
                self._feed_chunk(event)
            case "end":
                self.finish_reasons, self.ended = event["finish_reasons"], True
            case "error":
                self.error, self.ended = event["error"], True

    def _feed_chunk(self, event: Mapping[str, Any]) -> None:
        for index, token in enumerate(event["token_ids"], event["offset"]):
            place = event["choice"], index
            self.times_seen[place] += 1
            self.altered += self.tokens.setdefault(place, token) != token
        self.texts[event["choice"]] += event["text"]

    @property
    def num_tokens(self) -> list[int]:
        """The number of tokens of each choice, up to the first gap."""
        return [len(self.token_ids(choice)) for choice in range(self.fields.get("n", 1))]

    def token_ids(self, choice: int) -> list[int]:
        """Return the token ids of a choice up to the first gap."""
        places = itertools.takewhile(self.tokens.__contains__, ((choice, at) for at in itertools.count()))
        return [self.tokens[place] for place in places]

    def outcome(self) -> Outcome:
        """Return the outcome of an ended job."""
        first, *others = (
            Outcome(self.token_ids(choice), self.texts[choice], reason)
            for choice, reason in enumerate(self.finish_reasons)
        )
        return first._replace(others=tuple(others))

    @property
    def longest_silence_s(self) -> float:
        return max((later - earlier for earlier, later in pairwise(self.moments)), default=0.0)

    def judge(self, calm: Outcome) -> Verdict:
        expected = {
            (choice, index): token
            for choice, each in enumerate(choices_of(calm))
            for index, token in enumerate(each.token_ids)
        }
        lost = len(expected.keys() - self.tokens.keys())
        doubled = sum(count - 1 for count in self.times_seen.values())
        changed = self.altered + sum(expected.get(at) != token for at, token in self.tokens.items())
        notes = []
        if not self.ended or self.error is not None:
            lost = max(lost, 1)
            notes.append(self.error or "it has not ended")
        elif (mine := [each[1:3] for each in choices_of(self.outcome())]) != (
            wanted := [each[1:3] for each in choices_of(calm)]
        ):
            changed = max(changed, 1)
            notes.append(f"{mine}, not {wanted}")
        if lost or doubled or changed:
            notes.append(f"{len(self.tokens)} of {len(expected)} tokens")
        return Verdict(lost, doubled, changed, tuple(f"{self.job_id}: {note}" for note in notes))


class ReaderProcess:
    """A client in its own process; its events are fed to the logs of its streams."""

    def __init__(self, style: Style, arguments: Sequence[str]) -> None:
        self.style = style
        command = [sys.executable, "-m", *arguments]
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
        """Send a job and read it, or attach to a job that was sent before."""
        self._logs[log.job_id] = log
        job = {"job_id": log.job_id, "fields": log.fields, "attach": attach, "after": log.num_tokens}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def forget(self) -> None:
        """Drop the logs of the previous round."""
        self._logs.clear()

    def kill(self) -> None:
        """Send SIGKILL; return when everything that the client printed is in the logs."""
        self._process.kill()
        self._process.wait()
        self._thread.join()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith("\n"):
                return  # it died while it wrote this line
            event = json.loads(line)
            log = self._logs.get(event["job_id"])
            if log is not None:
                log.feed(event)
