"""Logprobs in the formats of chat completions, completions and vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagefleet.api.client.stream import Chunk
from pagefleet.api.contract.logprobs import Logprob, TokenLogprobs
from pagefleet.api.contract.messages import JobResult

_LOWEST = -9999.0
"""OpenAI's value for a probability of zero, because JSON has no infinity."""


def chat_logprobs(tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    return {
        "content": [
            {**_chat_token(each), "top_logprobs": [_chat_token(top) for top in each.top]} for each in tokens
        ],
        "refusal": None,
    }


def completion_logprobs(tokens: Sequence[TokenLogprobs | str], offsets: list[int]) -> dict[str, Any]:
    """Return the ``logprobs`` of a completion's choice.

    Args:
        tokens: a string is a token without logprobs, as the first token of a prompt.
        offsets: the index in the choice's text at which each token begins.
    """
    texts = [each if isinstance(each, str) else _completion_token(each) for each in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [None if isinstance(each, str) else _finite(each.logprob) for each in tokens],
        "top_logprobs": [None if isinstance(each, str) else _top(each) for each in tokens],
        "text_offset": offsets,
    }


def prompt_fields(source: Chunk | JobResult) -> dict[str, Any]:
    """Return those of vLLM's fields about the prompt that the request asked for."""
    fields: dict[str, Any] = {}
    if source.prompt_token_ids is not None:
        fields["prompt_token_ids"] = source.prompt_token_ids
    if source.prompt_logprobs is not None:
        fields["prompt_logprobs"] = prompt_logprobs(source.prompt_logprobs)
    return fields


def prompt_logprobs(tokens: Sequence[TokenLogprobs]) -> list[dict[str, Any] | None]:
    """Return vLLM's ``prompt_logprobs``: for each position the likeliest tokens and the prompt's, by id."""
    positions: list[dict[str, Any] | None] = [None]
    for each in tokens:
        likeliest: dict[str, Any] = {
            str(top.token_id): {"logprob": _finite(top.logprob), "rank": rank, "decoded_token": top.text}
            for rank, top in enumerate(each.top, 1)
        }
        own = {"logprob": _finite(each.logprob), "rank": each.rank, "decoded_token": each.text}
        positions.append({**likeliest, str(each.token_id): own})
    return positions


def _chat_token(token: Logprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.as_bytes)}


def _completion_token(token: Logprob) -> str:
    """Return the text of a token, or OpenAI's ``bytes:`` notation for part of a character."""
    if token.token_bytes is None:
        return token.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.token_bytes)


def _top(token: TokenLogprobs) -> dict[str, float]:
    """Return the likeliest tokens and the token itself."""
    likeliest = {_completion_token(top): _finite(top.logprob) for top in token.top}
    return {**likeliest, _completion_token(token): _finite(token.logprob)}


def _finite(value: float) -> float:
    return max(value, _LOWEST)
