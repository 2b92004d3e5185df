"""StepBudget: the token budget that keeps a step within a time, whatever the machine and the load."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["StepBudget", "StepCost"]

_FIRST: Final = 64
_LEAST: Final = 16
_MARGIN: Final = 0.8
_NUM_FREE_TOKENS: Final = 32
"""Tokens that could be computed in the time that a step takes anyway, to read the weights."""
_NUM_READING_TOKENS: Final = 48
"""Tokens that could be compared with a context in the time that it takes to read it; measured with
SmolLM2-135M in bfloat16 behind 7,000 tokens."""
_FULL: Final = 0.5
"""A step of less than this share of the budget says nothing of how quick full ones are."""
_TRUST: Final = 0.5
"""How much of the way from what was known to what a step says the estimate goes."""


class StepCost:
    """What a chunk of a prompt costs, in tokens without any context before them.

    A token is compared with each one before it, which costs `context_weight`, and the chunk as a whole reads
    them: n tokens behind c others cost n + context_weight * (n * (c + n / 2) + 48 * c). One token costs 1.
    """

    def __init__(self, context_weight: float = 0.0) -> None:
        self._weight = context_weight

    def of(self, num_tokens: int, num_context: int) -> int:
        """The cost of `num_tokens` tokens that follow `num_context` others."""
        if num_tokens == 1 or not self._weight:
            return num_tokens
        compared = num_tokens * (num_context + num_tokens / 2) + _NUM_READING_TOKENS * num_context
        return math.ceil(num_tokens + self._weight * compared)

    def most(self, budget: int, num_context: int) -> int:
        """How many tokens that follow `num_context` others cost at most `budget`; never less than 16, or than
        the budget if that is less."""
        if not self._weight:
            return budget
        # The positive solution n of the class's formula.
        weight, alone = self._weight, 1 + num_context * self._weight
        left = max(0.0, budget - _NUM_READING_TOKENS * num_context * weight)
        fitting = int((math.sqrt(alone * alone + 2 * weight * left) - alone) / weight)
        return max(min(budget, _LEAST), fitting)


class StepBudget:
    """Adapts a token budget to measured step times.

    It is what fits the time at the rate that full steps have shown, at first at the one that was measured at
    warm-up. If nothing was measured it begins small and at most doubles. A step that lasts too long counts
    whatever its size.

    Args:
        most: tokens of a step at most.
        max_step_s: seconds that a step should last at most; None: the budget is `most`, always.
        token_s: seconds that a token of a full step took at warm-up, None if that is not known.
    """

    def __init__(self, most: int, max_step_s: float | None, token_s: float | None = None) -> None:
        self._most = most
        self._max_step_s = max_step_s
        self._token_s = token_s
        self.num_tokens = most
        if max_step_s is not None:
            self.num_tokens = min(most, _FIRST) if token_s is None else self._fitting(token_s, max_step_s)

    def limit(self, most: int) -> None:
        """Set the largest budget, in tokens, from now on. Raise ValueError below 1."""
        if most < 1:
            raise ValueError(f"token_budget must be at least 1, not {most}: no step would advance.")
        self._most = most
        self.num_tokens = most if self._max_step_s is None else min(most, self.num_tokens)

    def observe(self, num_tokens: int, step_s: float) -> None:
        """A step that cost `num_tokens` lasted `step_s` seconds."""
        if self._max_step_s is None:
            return
        is_late = step_s > self._max_step_s
        if num_tokens < _FULL * self.num_tokens and not is_late:
            return
        seen = step_s / (num_tokens + _NUM_FREE_TOKENS)
        if self._token_s is None or is_late:
            self._token_s = seen if self._token_s is None else max(seen, self._token_s)
        else:
            self._token_s += _TRUST * (seen - self._token_s)
        self.num_tokens = min(2 * self.num_tokens, self._fitting(self._token_s, self._max_step_s))

    def _fitting(self, token_s: float, max_step_s: float) -> int:
        if token_s <= 0:
            return self._most
        fitting = _MARGIN * max_step_s / token_s - _NUM_FREE_TOKENS
        return int(min(self._most, max(_LEAST, fitting)))
