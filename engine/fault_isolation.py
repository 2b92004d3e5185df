"""Isolation: a step that fails is computed again in halves, until it is known which sequences it fails for.

An executor that raises has changed no sequence. So each half is a step of its own: what it can compute goes
on, and a sequence that fails alone, while others of that step do not, ends with an error. If none of them can
be computed, or the device itself is lost, no sequence is to blame and the engine has failed.

    step      [ a b c d e f g h ]   fails
    halves    [ a b c d ]           is computed
                       [ e f g h ]  fails
                       [ e f ]      is computed
                           [ g ]    fails: g ends
                             [ h ]  is computed
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Entries

from pagefleet.engine.core.scheduler_output import ScheduledSequence, SchedulerOutput
from pagefleet.engine.core.sequence import Sequence, SequenceStatus
from pagefleet.engine.errors import EngineFailedError
from pagefleet.engine.llm_engine import LLMEngine
from pagefleet.engine.outputs import SequenceOutput

__all__ = ["FaultIsolation"]

logger = logging.getLogger(__name__)


class FaultIsolation:
    """The steps of one engine, in place of its own `schedule`, `execute` and `step`."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        # What is left of a step that failed, the next part last.
        self._parts: list[list[ScheduledSequence]] = []
        self._request_ids: list[str] = []
        self._failed: list[tuple[Sequence, Exception]] = []
        self._has_succeeded = False

    def step(self) -> list[SequenceOutput]:
        """Advance the batch by one step. Raise EngineFailedError."""
        return self.execute(self.schedule())

    def schedule(self) -> SchedulerOutput:
        """Return the next step: the rest of one that failed comes first."""
        while self._parts:
            if part := _running(self._parts.pop()):
                return SchedulerOutput(part, [], [])
        return self._engine.schedule()

    def execute(self, plan: SchedulerOutput) -> list[SequenceOutput]:
        """Compute a step. Raise EngineFailedError if nothing of it can be computed."""
        part = _running(plan.scheduled)
        try:
            outputs = self._engine.execute(plan)
        except EngineFailedError:
            raise
        except Exception as error:
            if self._engine.has_lost_device(error):
                raise EngineFailedError(
                    f"The device is lost: {error}", self._request_ids or _ids(part)
                ) from error
            self._split(part, error)
            outputs = []
        else:
            self._has_succeeded |= bool(part)
        return outputs if self._parts else outputs + self._end()

    def _split(self, part: list[ScheduledSequence], error: Exception) -> None:
        is_first = not self._request_ids
        logger.warning("a step of %d sequences failed: %r", len(part), error, exc_info=is_first)
        if is_first:
            self._request_ids, self._has_succeeded = _ids(part), False
        if len(part) > 1:
            middle = len(part) // 2
            self._parts += [part[middle:], part[:middle]]
        elif is_first:
            # What fails once may not fail twice.
            self._parts.append(part)
        else:
            self._failed.append((part[0].sequence, error))

    def _end(self) -> list[SequenceOutput]:
        """All parts are done: end the sequences that failed alone."""
        failed, request_ids = self._failed, self._request_ids
        self._failed, self._request_ids = [], []
        if failed and not self._has_succeeded:
            raise EngineFailedError(
                f"No sequence of a step could be computed: {failed[-1][1]}", request_ids
            ) from failed[-1][1]
        return [
            self._engine.fail(sequence, f"The engine fails on this sequence alone: {error}")
            for sequence, error in failed
            if sequence.status is SequenceStatus.RUNNING
        ]


def _running(part: Entries[ScheduledSequence]) -> list[ScheduledSequence]:
    return [entry for entry in part if entry.sequence.status is SequenceStatus.RUNNING]


def _ids(part: Entries[ScheduledSequence]) -> list[str]:
    return list(dict.fromkeys(entry.sequence.request_id for entry in part))
