"""FaultIsolation: a step that fails is computed again in halves, to find the sequences that it fails for.

An executor that raises has changed no sequence, so each half can be computed as a separate step. A sequence
that fails alone, while others of the same step succeed, ends with an error. If none of them can be computed,
or the device is lost, the sequences are not at fault, and the engine has failed.

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
    """Runs the steps of an engine and isolates the sequences that make a step fail.

    Its `schedule`, `execute` and `step` replace those of the engine.
    """

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        # The parts of a failed step that are still to be computed; the next one is the last of the list.
        self._parts: list[list[ScheduledSequence]] = []
        self._request_ids: list[str] = []
        self._failed: list[tuple[Sequence, Exception]] = []
        self._has_succeeded = False

    def step(self) -> list[SequenceOutput]:
        """Advance the batch by one step. Raises EngineFailedError."""
        return self.execute(self.schedule())

    def schedule(self) -> SchedulerOutput:
        """Return the next step: the next part of a failed step, if there is one, else a new step."""
        while self._parts:
            if part := _running(self._parts.pop()):
                return SchedulerOutput(part, [], [], [])
        return self._engine.schedule()

    def reschedule(self, scheduler_output: SchedulerOutput) -> SchedulerOutput:
        """Return the next step instead of one that `schedule` returned and that has unconfirmed
        sequences."""
        return self._engine.reschedule(scheduler_output)

    def execute(self, scheduler_output: SchedulerOutput) -> list[SequenceOutput]:
        """Compute a step. Raises EngineFailedError if none of its sequences can be computed."""
        part = _running(scheduler_output.scheduled)
        try:
            outputs = self._engine.execute(scheduler_output)
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
        return outputs if self._parts else outputs + self._end_failed()

    def _split(self, part: list[ScheduledSequence], error: Exception) -> None:
        is_first = not self._request_ids
        logger.warning("a step of %d sequences failed: %r", len(part), error, exc_info=is_first)
        if is_first:
            self._request_ids, self._has_succeeded = _ids(part), False
        if len(part) > 1:
            middle = len(part) // 2
            self._parts += [part[middle:], part[:middle]]
        elif is_first:
            # The error may be transient: compute a single sequence once more.
            self._parts.append(part)
        else:
            self._failed.append((part[0].sequence, error))

    def _end_failed(self) -> list[SequenceOutput]:
        """End the sequences that failed alone, after all parts of the step were computed."""
        failed, request_ids = self._failed, self._request_ids
        self._failed, self._request_ids = [], []
        if failed and not self._has_succeeded:
            raise EngineFailedError(
                f"None of the step's sequences could be computed: {failed[-1][1]}", request_ids
            ) from failed[-1][1]
        return [
            self._engine.fail(sequence, f"The engine cannot compute this sequence: {error}")
            for sequence, error in failed
            if sequence.status is SequenceStatus.RUNNING
        ]


def _running(part: Entries[ScheduledSequence]) -> list[ScheduledSequence]:
    return [entry for entry in part if entry.sequence.status is SequenceStatus.RUNNING]


def _ids(part: Entries[ScheduledSequence]) -> list[str]:
    return list(dict.fromkeys(entry.sequence.request_id for entry in part))
