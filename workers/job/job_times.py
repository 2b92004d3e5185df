"""JobTimes: the durations of an attempt's stages."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class JobTimes:
    """Times of one attempt on this process's monotonic clock. ``waited_s`` is the time before the claim.

    submitted ...... claimed ...... scheduled ...... first token ...... last token
      |--- waited_s ---|
      |----------- queue_s ------------|--- prefill_s ---|---- decode_s ----|
    """

    attempt: int = 1
    taken_over: bool = False
    """The previous worker died while it held the job."""
    waited_s: float = 0.0
    claimed_at: float = field(default_factory=time.monotonic)
    scheduled_at: float | None = None
    """The first prefill; None if the job continues from the tokens of an earlier attempt."""
    first_token_at: float | None = None
    last_token_at: dict[int, float] = field(default_factory=dict)
    """By choice index."""

    @property
    def queue_s(self) -> float | None:
        """From submit to the first prefill, including earlier attempts without tokens."""
        return None if self.scheduled_at is None else self.waited_s + self.scheduled_at - self.claimed_at

    @property
    def prefill_s(self) -> float | None:
        if self.first_token_at is None or self.scheduled_at is None:
            return None
        return self.first_token_at - self.scheduled_at

    @property
    def first_token_s(self) -> float | None:
        """From submit to the job's first token; None if an earlier attempt produced it."""
        if self.first_token_at is None or self.scheduled_at is None:
            return None
        return self.waited_s + self.first_token_at - self.claimed_at

    @property
    def decode_s(self) -> float | None:
        """Between the first and the last token of this attempt."""
        if self.first_token_at is None or not self.last_token_at:
            return None
        return max(self.last_token_at.values()) - self.first_token_at
