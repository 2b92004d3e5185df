"""StepTracer: records where the time of an engine's first steps goes, in a file for Perfetto or
chrome://tracing.

The file contains the Trace Event Format's complete events ("ph": "X"), times in microseconds.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from pagefleet.engine.core.scheduler_output import SchedulerOutput

__all__ = ["NO_TRACER", "StepTracer"]

logger = logging.getLogger(__name__)

_NOTHING: Final[AbstractContextManager[None]] = nullcontext()


class StepTracer:
    """Records the stages of the first `num_steps` steps, in all threads, then writes them to `file`.

    The file is written when the next step begins, or on `close`, because another thread may publish the
    tokens of the last step until then. Afterwards the tracer does nothing.
    """

    def __init__(self, file: Path | None, num_steps: int) -> None:
        self._file = file
        self._num_left = num_steps
        self._events: list[dict[str, Any]] = []
        self._is_on = file is not None and num_steps > 0

    def span(self, name: str, **arguments: Any) -> AbstractContextManager[None]:
        """Return a context manager that records its block as a stage called `name`."""
        return self._timed(name, arguments) if self._is_on else _NOTHING

    def step(self, scheduler_output: SchedulerOutput) -> AbstractContextManager[None]:
        """Return a context manager that records its block as a step, with its batch."""
        if not self._is_on or not len(scheduler_output):
            return _NOTHING
        if self._num_left == 0:
            self.close()
            return _NOTHING
        self._num_left -= 1
        return self._timed("step", _composition(scheduler_output))

    def close(self) -> None:
        """Write the file, if it is not written yet. A file that cannot be written is logged, not raised."""
        if not self._is_on:
            return
        self._is_on = False
        assert self._file is not None
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        threads = [
            {"ph": "M", "name": "thread_name", "pid": os.getpid(), "tid": ident, "args": {"name": name}}
            for ident, name in names.items()
        ]
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps({"traceEvents": threads + self._events}))
        except OSError as error:
            logger.warning("the trace of steps cannot be written: %s", error)
        else:
            logger.info("the trace of steps is in %s: open it in https://ui.perfetto.dev", self._file)
        self._events = []

    @contextmanager
    def _timed(self, name: str, arguments: dict[str, Any]) -> Iterator[None]:
        begun_at = time.perf_counter_ns()
        try:
            yield
        finally:
            ended_at = time.perf_counter_ns()
            event = {"ph": "X", "name": name, "pid": os.getpid(), "tid": threading.get_ident()}
            event |= {"ts": begun_at / 1000, "dur": (ended_at - begun_at) / 1000, "args": arguments}
            self._events.append(event)


NO_TRACER: Final = StepTracer(None, 0)


def _composition(step: SchedulerOutput) -> dict[str, Any]:
    is_prefill = step.num_computed < step.num_prompt_tokens
    is_first = is_prefill & (step.num_computed + step.num_new_tokens >= step.num_prompt_tokens)
    return {
        "num_seqs": len(step),
        "num_tokens": step.num_tokens,
        "num_prefills": int(is_prefill.sum()),
        "num_prefill_tokens": int(step.num_new_tokens[is_prefill].sum()),
        "num_preempted": len(step.preempted),
        "context_lens": step.num_computed.tolist(),
        "first_tokens": [step.sequences[index].request_id for index in is_first.nonzero()[0].tolist()],
    }
