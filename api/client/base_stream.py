"""BaseTokenStream: what both token streams know of their job, without I/O."""

from __future__ import annotations

from collections.abc import Callable

from pagefleet.api.client.stream import StreamState
from pagefleet.api.client.stream_loop import StreamLoop
from pagefleet.api.contract.errors import JobLost
from pagefleet.api.contract.messages import JobResult


class BaseTokenStream:
    """The properties of a stream. They describe the job as far as the caller has read it."""

    def __init__(
        self,
        state: StreamState,
        keep_running: Callable[[bool], None],
        model: str,
        idle_timeout_s: float | None,
    ) -> None:
        self.job_id = state.job_id
        self.model = model
        self._state = state
        self._loop = StreamLoop(state, idle_timeout_s, keep_running)

    @property
    def has_ended(self) -> bool:
        """Whether the stream was read to its end, or closed."""
        return self._loop.is_closed

    @property
    def num_prompt_tokens(self) -> int | None:
        """Known after a worker has accepted the job."""
        return self._state.num_prompt_tokens

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were found in the prefix cache. Known with the first token."""
        return self._state.num_cached_tokens

    @property
    def num_tokens(self) -> int:
        """Generated tokens of all choices together."""
        return self._state.num_tokens

    def finish(self, choice: int) -> tuple[str | None, str | int | None]:
        """Return a choice's finish reason and stop reason, after the job has ended."""
        return self._state.finish(choice)

    def text_of(self, choice: int, num_tokens: int) -> str:
        """Return the text of a choice's first tokens."""
        return self._state.text_of(choice, num_tokens)

    def _outcome(self) -> JobResult:
        """Raises: FleetError: what the job failed with, even if an earlier call has raised it."""
        if self._state.error is not None:
            raise self._state.error
        return self._state.result(self.model)

    def _lost(self) -> JobLost:
        return JobLost(
            f"The server does not have job {self.job_id} any more: it was restarted without its data, or the "
            "result expired.",
            job_id=self.job_id,
        )
