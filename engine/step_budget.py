"""StepBudget: the token budget that keeps a step within a time, whatever the machine and the load."""

from __future__ import annotations

from typing import Final

__all__ = ["StepBudget"]

_FIRST: Final = 64
_LEAST: Final = 16
_MARGIN: Final = 0.8


class StepBudget:
    """Adapts a token budget to measured step times.

    Begins small, because nothing is known yet, doubles while full steps last less than half of the limit,
    and shrinks in proportion after a step that lasted longer than the limit.

    Args:
        most: tokens of a step at most.
        max_step_s: seconds that a step should last at most; None: the budget is `most`, always.
    """

    def __init__(self, most: int, max_step_s: float | None) -> None:
        self._most = most
        self._max_step_s = max_step_s
        self.num_tokens = most if max_step_s is None else min(most, _FIRST)

    def limit(self, most: int) -> None:
        """Set the largest budget, in tokens, from now on. Raise ValueError below 1."""
        if most < 1:
            raise ValueError(f"token_budget must be at least 1, not {most}: no step would advance.")
        self._most = most
        self.num_tokens = most if self._max_step_s is None else min(most, self.num_tokens)

    def observe(self, num_tokens: int, step_s: float) -> None:
        """A step of `num_tokens` lasted `step_s` seconds."""
        if self._max_step_s is None:
            return
        if step_s > self._max_step_s:
            fitting = int(min(num_tokens, self.num_tokens) * _MARGIN * self._max_step_s / step_s)
            self.num_tokens = min(self._most, max(_LEAST, fitting))
        elif step_s < self._max_step_s / 2 and num_tokens >= _MARGIN * self.num_tokens:
            self.num_tokens = min(self._most, 2 * self.num_tokens)
