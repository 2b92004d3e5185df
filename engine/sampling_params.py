"""What a request asks of the sampler, and when it wants its sequence to end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pagefleet.engine.errors import InvalidRequestError

__all__ = ["MAX_SEED", "SamplingParams"]

MAX_SEED = 2**64 - 1
MAX_TOP_K = 2**31 - 1
"""More than any vocabulary has, and still an int32 to the sampler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, and when a sequence ends. Keyword arguments only.

    The filters work in this order: temperature, top_k, top_p, min_p. Every field is checked:
    InvalidRequestError names the one at fault in `param`. `stop` takes one string or any iterable of
    strings, `stop_token_ids` any iterable of ints; both are kept as tuples.
    """

    max_tokens: int = 256
    min_tokens: int = 0
    """Nothing but `max_tokens` and the context ends a sequence with fewer output tokens than this."""
    temperature: float = 1.0
    """0 is greedy: the most likely token, whatever the filters and the seed."""
    top_k: int = 0
    """Keep the k most likely tokens. 0: all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probabilities reach p. 1: all."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the most likely one. 0: all."""
    seed: int | None = None
    """64 bits, unsigned. None: drawn when the request is added."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    """Whether the text keeps the stop string or the stop token that ended it."""
    ignore_eos: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        # Frozen, so the two fields that are normalised go around __setattr__.
        object.__setattr__(self, "stop", _as_tuple("stop", self.stop))
        object.__setattr__(self, "stop_token_ids", _as_tuple("stop_token_ids", self.stop_token_ids))
        _check_int("max_tokens", self.max_tokens, minimum=1)
        _check_int("min_tokens", self.min_tokens, minimum=0, maximum=self.max_tokens)
        _check_number("temperature", self.temperature)
        _check_int("top_k", self.top_k, minimum=0, maximum=MAX_TOP_K)
        _check_number("top_p", self.top_p, maximum=1.0)
        if self.top_p == 0:
            raise InvalidRequestError("top_p must be greater than 0 and at most 1.", "invalid_value", "top_p")
        _check_number("min_p", self.min_p, maximum=1.0)
        if self.seed is not None:
            _check_int("seed", self.seed, minimum=0, maximum=MAX_SEED)
        for text in self.stop:
            _check_stop(text)
        for token_id in self.stop_token_ids:
            _check_int("stop_token_ids", token_id, minimum=0)
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            _check_bool(name, getattr(self, name))


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable):
        raise InvalidRequestError(f"{name} must be a list, not {value!r}.", "invalid_type", name)
    return tuple(value)


def _check_int(name: str, value: Any, *, minimum: int, maximum: int | None = None) -> None:
    # bool is an int to Python; max_tokens=True is a mistake all the same.
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, not {value!r}.", "invalid_type", name)
    _check_range(name, value, minimum, maximum)


def _check_number(name: str, value: Any, *, maximum: float | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(f"{name} must be a number, not {value!r}.", "invalid_type", name)
    if not math.isfinite(value):
        raise InvalidRequestError(f"{name} must be a finite number, not {value}.", "invalid_value", name)
    _check_range(name, value, 0, maximum)


def _check_range(name: str, value: float, minimum: float, maximum: float | None) -> None:
    if value < minimum:
        raise InvalidRequestError(f"{name} must be at least {minimum}, not {value}.", "invalid_value", name)
    if maximum is not None and value > maximum:
        raise InvalidRequestError(f"{name} must be at most {maximum}, not {value}.", "invalid_value", name)


def _check_stop(text: Any) -> None:
    if not isinstance(text, str):
        raise InvalidRequestError(f"stop must hold strings, not {text!r}.", "invalid_type", "stop")
    if not text:
        raise InvalidRequestError(
            "stop must not hold the empty string: it would end every text at once.", "invalid_value", "stop"
        )


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be True or False, not {value!r}.", "invalid_type", name)
