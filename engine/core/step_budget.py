"""StepBudget: adapts the token budget so that a step does not exceed a time limit. StepCost: the cost of
tokens."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["StepBudget", "StepCost"]

_INITIAL_BUDGET: Final = 64
_MIN_BUDGET: Final = 16
_TARGET_SHARE: Final = 0.8
"""The share of the time limit that the budget aims at."""
_NUM_FREE_TOKENS: Final = 32
"""Tokens that could be computed in the time that a step needs to read the weights."""
_NUM_READING_TOKENS: Final = 48
"""Tokens that could attend to a context in the time that it takes to read the context; measured with
SmolLM2-135M in bfloat16 after 7,000 tokens."""
_MIN_FILL: Final = 0.5
"""Steps that use less than this share of the budget are not measured: they do not show the speed of full
steps."""
_SMOOTHING: Final = 0.5
"""The weight of the newest measurement in the estimate (exponential smoothing)."""


class StepCost:
    """The cost of computing a chunk of a prompt, in units of a token without context.

    A token attends to each token before it, which costs `context_weight`, and the chunk as a whole reads its
    context: n tokens after c others cost n + context_weight * (n * (c + n / 2) + 48 * c). A single token
    costs 1.
    """

    def __init__(self, context_weight: float = 0.0) -> None:
        self._weight = context_weight

    def of(self, num_tokens: int, num_context: int) -> int:
        """Return the cost of `num_tokens` tokens that follow `num_context` others."""
        if num_tokens == 1 or not self._weight:
            return num_tokens
        compared = num_tokens * (num_context + num_tokens / 2) + _NUM_READING_TOKENS * num_context
        return math.ceil(num_tokens + self._weight * compared)

    def max_num_tokens(self, budget: int, num_context: int) -> int:
        """Return how many tokens that follow `num_context` others cost at most `budget`.

        At least 16, or the budget if that is less, so that every prompt advances.
        """
        if not self._weight:
            return budget
        # The formula of the class, solved for n.
        weight, alone = self._weight, 1 + num_context * self._weight
        left = max(0.0, budget - _NUM_READING_TOKENS * num_context * weight)
        fitting = int((math.sqrt(alone * alone + 2 * weight * left) - alone) / weight)
        return max(min(budget, _MIN_BUDGET), fitting)


class StepBudget:
    """A token budget that adapts to measured step times.

    The budget is the number of tokens that fit the time limit at the speed of recent full steps, at first at
    the speed measured during warm-up. Without that it starts at 64. It at most doubles from step to step. A
    step that exceeds the limit counts even if it was not full.

    Args:
        max_num_tokens: the largest budget.
        max_step_s: the time limit of a step, in seconds. None: the budget is always `max_num_tokens`.
        token_s: seconds per token of a full step, measured during warm-up; None if not measured.
    """

    def __init__(self, max_num_tokens: int, max_step_s: float | None, token_s: float | None = None) -> None:
        self._max_num_tokens = max_num_tokens
        self._max_step_s = max_step_s
        self._token_s = token_s
        self.num_tokens = max_num_tokens
        if max_step_s is not None:
            initial = min(max_num_tokens, _INITIAL_BUDGET)
            self.num_tokens = initial if token_s is None else self._fitting(token_s, max_step_s)

    def limit(self, max_num_tokens: int) -> None:
        """Set the largest budget from now on, in tokens. Raises ValueError below 1."""
        if max_num_tokens < 1:
            raise ValueError(f"token_budget must be at least 1, not {max_num_tokens}.")
        self._max_num_tokens = max_num_tokens
        self.num_tokens = max_num_tokens if self._max_step_s is None else min(max_num_tokens, self.num_tokens)

    def observe(self, num_tokens: int, step_s: float) -> None:
        """Record that a step of cost `num_tokens` took `step_s` seconds."""
        if self._max_step_s is None:
            return
        is_late = step_s > self._max_step_s
        if num_tokens < _MIN_FILL * self.num_tokens and not is_late:
            return
        measured_s = step_s / (num_tokens + _NUM_FREE_TOKENS)
        if self._token_s is None or is_late:
            self._token_s = measured_s if self._token_s is None else max(measured_s, self._token_s)
        else:
            self._token_s += _SMOOTHING * (measured_s - self._token_s)
        self.num_tokens = min(2 * self.num_tokens, self._fitting(self._token_s, self._max_step_s))

    def _fitting(self, token_s: float, max_step_s: float) -> int:
        if token_s <= 0:
            return self._max_num_tokens
        fitting = _TARGET_SHARE * max_step_s / token_s - _NUM_FREE_TOKENS
        return int(min(self._max_num_tokens, max(_MIN_BUDGET, fitting)))
