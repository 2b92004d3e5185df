"""StreamLoop: what a token stream does next, without I/O.

The synchronous and the asynchronous stream ask it for the next step and carry it out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

from pagefleet.api.client.backoff import Backoff
from pagefleet.api.client.events import LiveEvent, Resync
from pagefleet.api.client.stream import SILENCE_S, Chunk, StreamState
from pagefleet.api.contract.errors import RedisUnavailable, StreamTimeout
from pagefleet.api.protocol.job_record import JobRecord


class Action(Enum):
    """A step other than returning to the caller or waiting for an event."""

    REPLAY = "replay"
    """Read the job's log."""
    END = "end"
    """The job has ended and all its tokens were returned: close the stream and raise the job's error."""


Step = Chunk | Action | float | None
"""Return a chunk, carry out an action, or wait this many seconds for the next event. None: return without a
chunk, since the stream is closed, or the caller's time is over."""


class StreamLoop:
    """Decides between returning a chunk, reading the log, waiting and giving up.

    Args:
        idle_timeout_s: seconds without a chunk after which the caller gets a ``StreamTimeout``. None waits
            forever. What the caller does between two chunks does not count.
        keep_running: called with True when a ``StreamTimeout`` is raised, since the job then continues
            without its reader, and with False when the caller reads on.
    """

    def __init__(
        self, state: StreamState, idle_timeout_s: float | None, keep_running: Callable[[bool], None]
    ) -> None:
        self.state = state
        self.is_closed = False
        self.is_cancelled = False
        self._idle_timeout_s = float("inf") if idle_timeout_s is None else idle_timeout_s
        self._keep_running = keep_running
        self._is_kept_running = False
        self._backoff = Backoff(base_s=0.2, cap_s=0.5)
        self.start_call()

    def start_call(self) -> None:
        """The caller asks for a chunk: the idle timeout starts anew."""
        self._idle_until = time.monotonic() + self._idle_timeout_s
        if self._is_kept_running:
            self._is_kept_running = False
            self._keep_running(False)

    def next_step(self, until: float | None = None) -> Step:
        """Return the next step towards a chunk.

        Args:
            until: the monotonic time after which to stop without a chunk. By default the idle timeout counts.

        Raises:
            StreamTimeout: the idle timeout is over.
        """
        if self.is_closed:
            return None
        chunk = self.state.pop()
        if chunk is not None:
            return chunk
        if self.state.ended:
            return Action.END
        return self.next_event_step(until)

    def next_event_step(self, until: float | None) -> Action | float | None:
        """Return the next step towards an event, whether or not chunks are waiting."""
        if self.is_closed:
            return None
        if until is not None and time.monotonic() >= until:
            return None
        if self.state.wants_replay:
            return Action.REPLAY
        time_left_s = (self._idle_until if until is None else until) - time.monotonic()
        if time_left_s <= 0:
            if until is not None:
                return None
            raise self._timeout()
        return min(time_left_s, SILENCE_S)

    @property
    def is_accepted(self) -> bool:
        """Whether a worker has accepted the job, or it has ended."""
        return self.state.num_prompt_tokens is not None or self.state.ended

    def take(self, event: LiveEvent | Resync | None) -> bool:
        """Process what the source returned; None is silence.

        Returns:
            Whether to send the caller's cancel again: a server that was restarted without its last second
            may have lost it.
        """
        if isinstance(event, LiveEvent):
            self.state.feed_line(event.kind, event.body)
            return False
        self.state.wants_replay = True
        return event is not None and self.is_cancelled

    def take_record(self, record: JobRecord) -> None:
        """Process what the server has of the job."""
        self._backoff.reset()
        self.state.feed_record(record)

    def retry_delay(self, error: RedisUnavailable, until: float | None = None) -> float:
        """Return the seconds until the log is read again after ``error``.

        Args:
            until: as for :meth:`next_step`.

        Raises:
            RedisUnavailable: ``error``, if the idle timeout is over.
        """
        time_left_s = (self._idle_until if until is None else until) - time.monotonic()
        if time_left_s <= 0:
            if until is not None:
                return 0.0
            self._leave_running()
            raise error from None
        return min(time_left_s, self._backoff.next_s())

    def _leave_running(self) -> None:
        self._is_kept_running = True
        self._keep_running(True)

    def _timeout(self) -> StreamTimeout:
        self._leave_running()
        return StreamTimeout(
            f"Nothing came from job {self.state.job_id} for {self._idle_timeout_s:g} s. It is still queued "
            "or running; read it later with attach().",
            job_id=self.state.job_id,
        )
