"""EngineRequest: one request as the engine takes it, and what is checked before it is taken."""

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
    """One request, as token ids.

    Larger `priority` is more urgent. Only requests with the same `cache_salt` share the prefix cache.
    """

    request_id: str
    prompt_token_ids: Iterable[int]
    sampling_params: SamplingParams
    logs: Sequence[Iterable[int] | None] = ()
    """What an earlier attempt generated, by choice: it is not generated again. A choice that is not among
    them begins; one that is None had ended, and no output of it comes."""
    priority: int = 0
    cache_salt: str = ""
    prefix_cache: bool = True
    """False: the whole prompt is computed, and no other request finds its blocks."""
    grammar: Grammar | None = None
    """What `LLMEngine.compile_grammar` made; the engine takes a copy."""


def checked_token_ids(param: str, token_ids: Iterable[int], info: ModelInfo) -> list[int]:
    """The ids as a list of the caller's own, of plain ints.

    Raises InvalidRequestError with code `invalid_type` or `token_out_of_vocabulary`.
    """
    try:
        checked = [operator.index(token_id) for token_id in token_ids]
    except TypeError:
        raise InvalidRequestError(f"{param} must hold integers only.", "invalid_type", param) from None
    if checked and (min(checked) < 0 or max(checked) >= info.vocab_size):
        wrong = next(token_id for token_id in checked if not 0 <= token_id < info.vocab_size)
        raise InvalidRequestError(
            f"{param} has the id {wrong}; {info.name} knows 0 to {info.vocab_size - 1}.",
            "token_out_of_vocabulary",
            param,
        )
    return checked


def check_logs(request: EngineRequest) -> None:
    """Raises InvalidRequestError with code `invalid_value` where there are more logs than choices."""
    n = request.sampling_params.n
    if len(request.logs) > n:
        raise InvalidRequestError(
            f"There are {len(request.logs)} logs for {n} choices: give one each.", "invalid_value", "logs"
        )


def check_prompt_length(num_tokens: int, info: ModelInfo) -> None:
    """Raises InvalidRequestError with code `empty_prompt` or `context_length`."""
    param = "prompt_token_ids"
    if num_tokens == 0:
        raise InvalidRequestError("The prompt is empty: give at least one token.", "empty_prompt", param)
    if num_tokens >= info.max_model_len:
        raise InvalidRequestError(
            f"The prompt has {num_tokens} tokens and {info.name} takes {info.max_model_len} "
            "with the output: shorten the prompt.",
            "context_length",
            param,
        )


def check_sampling_token_ids(params: SamplingParams, info: ModelInfo) -> None:
    """Raises InvalidRequestError with code `token_out_of_vocabulary`."""
    checked_token_ids("allowed_token_ids", params.allowed_token_ids or (), info)
    checked_token_ids("logit_bias", (token_id for token_id, _ in params.logit_bias), info)
