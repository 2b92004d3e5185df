"""PrefillGate: let a job that may have crashed its last worker run its first prefill alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from pagefleet.engine import PreparedRequest


def has_begun(request: PreparedRequest) -> bool:
    """Return whether an earlier attempt has computed a token: the request is not a suspect then."""
    return any(log is None or log for log in request.request.logs)


class PrefillGate:
    """Decides when a claimed request enters the engine (protocol line 12: a suspect is run again alone).

    A request is *starting* from its admission until its first token. A solo request waits until no other
    request is starting, and the requests behind it wait until it has a token. Requests that already have
    tokens pass at once, because they are never suspects. Not thread-safe.

    Args:
        admit: adds a request to the engine; returns False if the engine rejected it.
    """

    def __init__(self, admit: Callable[[PreparedRequest], bool]) -> None:
        self._admit = admit
        self._waiting: deque[tuple[PreparedRequest, bool]] = deque()
        self._starting: set[str] = set()
        self._solo: str | None = None
        self._were_solo: set[str] = set()

    def add(self, request: PreparedRequest, solo: bool) -> None:
        if solo:
            self._were_solo.add(request.request_id)
        if has_begun(request):
            self._admit(request)
            return
        self._waiting.append((request, solo))
        self._admit_waiting()

    @property
    def has_starting(self) -> bool:
        """Whether `on_started` can change anything."""
        return bool(self._starting or self._waiting)

    def on_started(self, request_id: str) -> None:
        """The request has its first token, has ended, or was aborted: it is no longer starting or waiting."""
        if request_id in self._starting:
            self._starting.discard(request_id)
            if request_id == self._solo:
                self._solo = None
            self._admit_waiting()
        elif self._waiting:
            self._waiting = deque(entry for entry in self._waiting if entry[0].request_id != request_id)
            self._admit_waiting()

    def on_ended(self, request_id: str) -> None:
        """The request is out of the engine."""
        self._were_solo.discard(request_id)

    def suspects(self, request_ids: Iterable[str]) -> list[str]:
        """Return which requests of a failed step may have caused the failure.

        These are the requests that are starting, because the others have been computed before. If none is
        starting, all of them are suspects except those that were admitted as solo requests: they would be
        blamed a second time without evidence.
        """
        request_ids = list(request_ids)
        starting = [each for each in request_ids if each in self._starting]
        return starting or [each for each in request_ids if each not in self._were_solo]

    def _admit_waiting(self) -> None:
        while self._waiting and self._solo is None:
            request, solo = self._waiting[0]
            if solo and self._starting:
                return
            self._waiting.popleft()
            if self._admit(request):
                self._starting.add(request.request_id)
                self._solo = request.request_id if solo else None
