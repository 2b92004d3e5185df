"""SoloGate: a job that may have killed its last worker begins its prefill alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from pagefleet.engine import EngineRequest


class SoloGate:
    """Between what was claimed and the engine (protocol line 12: suspects are run again by themselves).

    A request without any token yet is *beginning* from its admission to its first token. A solo request
    begins while no other one does; those behind it wait for that. Requests that have tokens pass: they are
    never suspects. Not thread-safe.

    Args:
        admit: hands a request to the engine; false where the engine refused it.
    """

    def __init__(self, admit: Callable[[EngineRequest], bool]) -> None:
        self._admit = admit
        self._waiting: deque[tuple[EngineRequest, bool]] = deque()
        self._beginning: set[str] = set()
        self._solo: str | None = None
        self._were_solo: set[str] = set()

    def put(self, request: EngineRequest, solo: bool) -> None:
        if solo:
            self._were_solo.add(request.request_id)
        if any(log is None or log for log in request.logs):
            self._admit(request)
            return
        self._waiting.append((request, solo))
        self._open()

    def is_beginning(self, request_id: str) -> bool:
        return request_id in self._beginning

    def passed(self, request_id: str) -> None:
        """The request has a token, has ended, or is not wanted any more."""
        if request_id in self._beginning:
            self._beginning.discard(request_id)
            if request_id == self._solo:
                self._solo = None
            self._open()
        elif self._waiting:
            self._waiting = deque(entry for entry in self._waiting if entry[0].request_id != request_id)
            self._open()

    def suspects(self, request_ids: Iterable[str]) -> list[str]:
        """Of the requests in a step that failed as a whole, those that may be its cause.

        Those that begin: the others were computed before. If none begins, all of them, but for those that
        were suspects before: they would be blamed for what is not known to be theirs.
        """
        request_ids = list(request_ids)
        beginning = [each for each in request_ids if each in self._beginning]
        return beginning or [each for each in request_ids if each not in self._were_solo]

    def ended(self, request_id: str) -> None:
        """The request is out of the engine."""
        self._were_solo.discard(request_id)

    def _open(self) -> None:
        while self._waiting and self._solo is None:
            request, solo = self._waiting[0]
            if solo and self._beginning:
                return
            self._waiting.popleft()
            if self._admit(request):
                self._beginning.add(request.request_id)
                self._solo = request.request_id if solo else None
