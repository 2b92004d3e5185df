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

import numpy as np

from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.core.sequence import Sequence, SequenceStatus
from pagefleet.engine.errors import EngineFailedError
from pagefleet.engine.llm_engine import LLMEngine
from pagefleet.engine.outputs import SequenceOutput
from pagefleet.engine.requests.output_processor import StepTokens

__all__ = ["FaultIsolation"]

logger = logging.getLogger(__name__)


class FaultIsolation:
    """Runs the steps of an engine and isolates the sequences that make a step fail.

    Its `schedule`, `submit`, `take` and `step` replace those of the engine.
    """

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        # The parts of a failed step that are still to be computed; the next one is the last of the list.
        self._parts: list[SchedulerOutput] = []
        self._request_ids: list[str] = []
        self._failed: list[tuple[Sequence, Exception]] = []
        self._has_succeeded = False

    def step(self) -> list[SequenceOutput]:
        """Advance the batch by one step, like `LLMEngine.step`. Raises EngineFailedError."""
        step = self.schedule()
        if len(step):
            self.submit(step)
            if not self.must_take:
                return []
        return self._engine.outputs(self.take())

    def schedule(self) -> SchedulerOutput:
        """Return the next step: the next part of a failed step, if there is one, else a new step."""
        while self._parts:
            part = self._parts.pop()
            if part.is_alive.any():
                return part
        return self._engine.schedule()

    def reschedule(self, step: SchedulerOutput) -> SchedulerOutput:
        """Return the next step instead of one that `schedule` returned and that has unconfirmed
        sequences."""
        return self._engine.reschedule(step)

    def submit(self, step: SchedulerOutput) -> None:
        """Start to compute a step."""
        self._engine.submit(step)

    @property
    def must_take(self) -> bool:
        """Whether the oldest step must be taken before the next one is scheduled. The parts of a failed step
        are computed one by one."""
        return self._engine.must_take or bool(self._request_ids)

    def take(self) -> StepTokens:
        """Wait for the oldest step and return its tokens. Raises EngineFailedError if none of its sequences
        can be computed."""
        part = self._engine.oldest_step
        try:
            tokens = self._engine.take()
        except EngineFailedError:
            raise
        except Exception as error:
            assert part is not None
            part = part.select(np.flatnonzero(part.is_alive))
            if self._engine.has_lost_device(error):
                raise EngineFailedError(
                    f"The device is lost: {error}", self._request_ids or _ids(part)
                ) from error
            self._split(part, error)
            tokens = StepTokens([], [], [])
        else:
            self._has_succeeded |= part is not None
        if not self._parts:
            self._end_failed()
        return tokens

    def _split(self, part: SchedulerOutput, error: Exception) -> None:
        is_first = not self._request_ids
        logger.warning("a step of %d sequences failed: %r", len(part), error, exc_info=is_first)
        if is_first:
            self._request_ids, self._has_succeeded = _ids(part), False
        if len(part) > 1:
            middle = len(part) // 2
            self._parts += [part.select(range(middle, len(part))), part.select(range(middle))]
        elif is_first and len(part):
            # The error may be transient: compute a single sequence once more.
            self._parts.append(part)
        elif len(part):
            self._failed.append((part.sequences[0], error))

    def _end_failed(self) -> None:
        """End the sequences that failed alone, after all parts of the step were computed. The next step's
        output has them."""
        failed, request_ids = self._failed, self._request_ids
        self._failed, self._request_ids = [], []
        if failed and not self._has_succeeded:
            raise EngineFailedError(
                f"None of the step's sequences could be computed: {failed[-1][1]}", request_ids
            ) from failed[-1][1]
        for sequence, error in failed:
            if sequence.status is SequenceStatus.RUNNING:
                self._engine.fail(sequence, f"The engine cannot compute this sequence: {error}")


def _ids(part: SchedulerOutput) -> list[str]:
    return list(dict.fromkeys(sequence.request_id for sequence in part.sequences))
