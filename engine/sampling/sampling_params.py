"""SamplingParams: how a request's tokens are chosen, and when its sequences end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pagefleet.engine.errors import InvalidRequestError

__all__ = ["MAX_SEED", "SamplingParams"]

MAX_SEED = 2**64 - 1
MAX_TOP_K = 2**31 - 1
"""The largest int32; more than any vocabulary has."""
MAX_PENALTY = 2.0
"""Bound of the presence and frequency penalties, with either sign: the range of OpenAI and vLLM."""
MAX_REPETITION_PENALTY = 1e6
"""Values near it already forbid a token; a logit multiplied by it is still far from infinity."""
MAX_BIAS = 100.0
"""OpenAI's range; its ends in effect forbid or force a token."""

MAX_CHOICES = 128
MAX_LOGPROBS = 20
"""The limit of OpenAI and vLLM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, and when a sequence ends. Keyword arguments only.

    The parameters apply in vLLM's order: allowed_token_ids, bad_words, min_tokens, logit_bias, repetition,
    frequency and presence penalty (defined in logits_processor.py), then temperature, min_p, top_k, top_p,
    typical_p (defined in token_draw.py). `stop` and `bad_words` take one string or any iterable of strings,
    `stop_token_ids` and `allowed_token_ids` any iterable of ints, `logit_bias` a mapping; all are stored as
    tuples.

    Raises InvalidRequestError for a wrong value; `param` names the field.
    """

    n: int = 1
    """Number of choices, sampled independently. The prompt's full blocks are computed once for all of
    them."""
    max_tokens: int = 256
    min_tokens: int = 0
    """Before this many output tokens no end-of-sequence or stop token is chosen and no stop string ends the
    text; only `max_tokens` and the context end the sequence."""
    temperature: float = 1.0
    """0 is greedy: the most likely token, independent of the filters and the seed."""
    top_k: int = 0
    """Keep the k most likely tokens. 0: all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probabilities reach p. 1: all."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the most likely one. 0: all."""
    typical_p: float = 1.0
    """Keep the tokens whose information is nearest to the distribution's entropy, up to this mass. 1: all."""
    repetition_penalty: float = 1.0
    """Of tokens that occur in the prompt or the output, positive logits are divided by it and negative ones
    multiplied."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that occur in the output."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each occurrence in the output."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of these tokens."""
    allowed_token_ids: tuple[int, ...] | None = None
    """Only these tokens are chosen. None: all."""
    bad_words: tuple[str, ...] = ()
    """Words that the output never contains, as the token sequences that spell them at the beginning of a text
    and after a space."""
    seed: int | None = None
    """64 bits, unsigned. None: the engine picks one when the request is added."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    """Whether the text keeps the stop string or the stop token that ended it."""
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    kept_special_tokens: tuple[str, ...] = ()
    """Special tokens, by their text, that are not skipped if `skip_special_tokens` is set."""
    logprobs: int | None = None
    """Return the logprob of each output token and of this number of most likely tokens. None: not
    computed."""
    prompt_logprobs: int | None = None
    """The same for each prompt token except the first. The prompt is then computed without the prefix
    cache."""
    speculate: bool = True
    """Whether speculative decoding may be used. It changes when tokens arrive, never which."""

    def __post_init__(self) -> None:
        # The dataclass is frozen: normalised values must bypass its __setattr__.
        for name in ("stop", "stop_token_ids", "bad_words", "allowed_token_ids", "kept_special_tokens"):
            if getattr(self, name) is not None or name != "allowed_token_ids":
                object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        object.__setattr__(self, "logit_bias", _as_pairs("logit_bias", self.logit_bias))
        _check_int("n", self.n, minimum=1, maximum=MAX_CHOICES)
        _check_int("max_tokens", self.max_tokens, minimum=1)
        _check_int("min_tokens", self.min_tokens, minimum=0, maximum=self.max_tokens)
        _check_number("temperature", self.temperature)
        _check_int("top_k", self.top_k, minimum=0, maximum=MAX_TOP_K)
        _check_number("top_p", self.top_p, maximum=1.0, above=True)
        _check_number("min_p", self.min_p, maximum=1.0)
        _check_number("typical_p", self.typical_p, maximum=1.0, above=True)
        _check_number(
            "repetition_penalty", self.repetition_penalty, maximum=MAX_REPETITION_PENALTY, above=True
        )
        _check_number("presence_penalty", self.presence_penalty, minimum=-MAX_PENALTY, maximum=MAX_PENALTY)
        _check_number("frequency_penalty", self.frequency_penalty, minimum=-MAX_PENALTY, maximum=MAX_PENALTY)
        if self.seed is not None:
            _check_int("seed", self.seed, minimum=0, maximum=MAX_SEED)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), minimum=0, maximum=MAX_LOGPROBS)
        self._check_lists()
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "speculate"):
            _check_bool(name, getattr(self, name))

    def _check_lists(self) -> None:
        for text in self.stop:
            _check_text("stop", text, "it would end every text immediately")
        for text in self.kept_special_tokens:
            _check_text("kept_special_tokens", text, "it is not a token")
        for text in self.bad_words:
            _check_text("bad_words", text, "it is not a word")
        for token_id in self.stop_token_ids:
            _check_int("stop_token_ids", token_id, minimum=0)
        for token_id in self.allowed_token_ids or ():
            _check_int("allowed_token_ids", token_id, minimum=0)
        if self.allowed_token_ids == ():
            raise InvalidRequestError(
                "allowed_token_ids must not be empty; leave it out to allow every token.",
                "invalid_value",
                "allowed_token_ids",
            )
        for token_id, bias in self.logit_bias:
            _check_int("logit_bias", token_id, minimum=0)
            _check_number("logit_bias", bias, minimum=-MAX_BIAS, maximum=MAX_BIAS)


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable):
        raise InvalidRequestError(
            f"{name} must be a list or another iterable, not {value!r}.", "invalid_type", name
        )
    return tuple(value)


def _as_pairs(name: str, value: Any) -> tuple[Any, ...]:
    """Return the pairs by ascending id, so that equal biases compare equal."""
    try:
        return tuple(sorted(dict(value).items()))
    except (TypeError, ValueError):
        raise InvalidRequestError(
            f"{name} must map token ids to numbers, not {value!r}.", "invalid_type", name
        ) from None


def _check_int(name: str, value: Any, *, minimum: int, maximum: int | None = None) -> None:
    # bool is an int to Python; max_tokens=True is a mistake anyway.
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, not {value!r}.", "invalid_type", name)
    _check_range(name, value, minimum, maximum)


def _check_number(
    name: str, value: Any, *, minimum: float = 0, maximum: float | None = None, above: bool = False
) -> None:
    """`above`: the minimum itself is not allowed."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(f"{name} must be a number, not {value!r}.", "invalid_type", name)
    if not math.isfinite(value):
        raise InvalidRequestError(f"{name} must be a finite number, not {value}.", "invalid_value", name)
    if above and value <= minimum:
        raise InvalidRequestError(
            f"{name} must be greater than {minimum}, not {value}.", "invalid_value", name
        )
    _check_range(name, value, minimum, maximum)


def _check_range(name: str, value: float, minimum: float, maximum: float | None) -> None:
    if value < minimum:
        raise InvalidRequestError(f"{name} must be at least {minimum}, not {value}.", "invalid_value", name)
    if maximum is not None and value > maximum:
        raise InvalidRequestError(f"{name} must be at most {maximum}, not {value}.", "invalid_value", name)


def _check_text(name: str, text: Any, why: str) -> None:
    if not isinstance(text, str):
        raise InvalidRequestError(f"{name} must contain only strings, not {text!r}.", "invalid_type", name)
    if not text.strip() if name == "bad_words" else not text:
        raise InvalidRequestError(f"{name} must not contain an empty string: {why}.", "invalid_value", name)


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be True or False, not {value!r}.", "invalid_type", name)
