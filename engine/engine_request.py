"""EngineRequest: one request to the engine, and the checks before the engine accepts it."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pagefleet.engine.errors import InvalidRequestError
from pagefleet.engine.model_info import ModelInfo
from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.structured.grammar import Grammar

__all__ = [
    "EngineRequest",
    "check_logs",
    "check_prompt_length",
    "check_sampling_token_ids",
    "checked_token_ids",
]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One generation request to the engine, as token ids."""

    request_id: str
    """Unique among the unfinished requests of the engine."""
    prompt_token_ids: Iterable[int]
    sampling_params: SamplingParams
    logs: Sequence[Iterable[int] | None] = ()
    """The output tokens of an earlier attempt, one log per choice: generation continues after them. A choice
    without a log starts from the prompt. None marks a choice that had ended; the engine returns no output
    for it."""
    priority: int = 0
    """Requests with a larger value are scheduled first."""
    cache_salt: str = ""
    """Only requests with the same salt share blocks of the prefix cache."""
    prefix_cache: bool = True
    """False: compute the whole prompt and share its blocks with no other request."""
    grammar: Grammar | None = None
    """The result of `LLMEngine.compile_grammar`; the engine copies it."""


def checked_token_ids(param: str, token_ids: Iterable[int], info: ModelInfo) -> list[int]:
    """Return the ids as a new list of plain ints.

    Raises InvalidRequestError with code `invalid_type` or `token_out_of_vocabulary`.
    """
    try:
        checked = [operator.index(token_id) for token_id in token_ids]
    except TypeError:
        raise InvalidRequestError(f"{param} must contain only integers.", "invalid_type", param) from None
    if checked and (min(checked) < 0 or max(checked) >= info.vocab_size):
        wrong = next(token_id for token_id in checked if not 0 <= token_id < info.vocab_size)
        raise InvalidRequestError(
            f"{param} has the token id {wrong}; the ids of {info.name} are 0 to {info.vocab_size - 1}.",
            "token_out_of_vocabulary",
            param,
        )
    return checked


def check_logs(request: EngineRequest) -> None:
    """Raise InvalidRequestError with code `invalid_value` if there are more logs than choices."""
    n = request.sampling_params.n
    if len(request.logs) > n:
        raise InvalidRequestError(
            f"logs has {len(request.logs)} entries for {n} choices: give at most one per choice.",
            "invalid_value",
            "logs",
        )


def check_prompt_length(num_tokens: int, info: ModelInfo) -> None:
    """Raise InvalidRequestError with code `empty_prompt` or `context_length`."""
    param = "prompt_token_ids"
    if num_tokens == 0:
        raise InvalidRequestError("The prompt is empty: give at least one token.", "empty_prompt", param)
    if num_tokens >= info.max_model_len:
        raise InvalidRequestError(
            f"The prompt has {num_tokens} tokens, but the context of {info.name} has {info.max_model_len} "
            "for prompt and output: shorten the prompt.",
            "context_length",
            param,
        )


def check_sampling_token_ids(params: SamplingParams, info: ModelInfo) -> None:
    """Raise InvalidRequestError with code `token_out_of_vocabulary`."""
    checked_token_ids("allowed_token_ids", params.allowed_token_ids or (), info)
    checked_token_ids("logit_bias", (token_id for token_id, _ in params.logit_bias), info)
