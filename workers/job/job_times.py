"""JobTimes: what an attempt's stages took."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class JobTimes:
    """Moments of one attempt, on this process's monotonic clock; what came before the claim is ``waited_s``.

    submitted ...... claimed ...... scheduled ...... first token ...... last token
      |--- waited_s ---|
      |----------- queue_s ------------|--- prefill_s ---|---- decode_s ----|
    """

    attempt: int = 1
    taken_over: bool = False
    """The worker that had the job before died with it."""
    waited_s: float = 0.0
    claimed_at: float = field(default_factory=time.monotonic)
    scheduled_at: float | None = None
    """None also for a job that brought tokens along: it does not begin here."""
    first_token_at: float | None = None
    last_token_at: dict[int, float] = field(default_factory=dict)
    """By choice."""

    @property
    def queue_s(self) -> float | None:
        """From the submit until the engine took it up, an earlier attempt without a token included."""
        return None if self.scheduled_at is None else self.waited_s + self.scheduled_at - self.claimed_at

    @property
    def prefill_s(self) -> float | None:
        if self.first_token_at is None or self.scheduled_at is None:
            return None
        return self.first_token_at - self.scheduled_at

    @property
    def first_token_s(self) -> float | None:
        """From the submit to the first token of all; None where another attempt had it."""
        if self.first_token_at is None or self.scheduled_at is None:
            return None
        return self.waited_s + self.first_token_at - self.claimed_at

    @property
    def decode_s(self) -> float | None:
        """Between the first and the last token of this attempt."""
        if self.first_token_at is None or not self.last_token_at:
            return None
        return max(self.last_token_at.values()) - self.first_token_at
