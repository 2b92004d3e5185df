"""How many bytes a job may come to take on the server: what its tenant reserves before it is computed."""

from __future__ import annotations

from typing import Final

from pagefleet.api.contract.messages import GenerateRequest

_TOKEN_BYTES: Final = 100
"""Of a token in the log and in Celery's result together: its id, its text, and their JSON."""
_LOGPROB_BYTES: Final = 200
"""Of a token with its logprob there, or of one that it is compared with."""
_BYTES_A_TOKEN: Final = 4
"""Of a prompt's text."""


def reserved_bytes(request: GenerateRequest, num_request_bytes: int) -> int:
    """The request, and an estimate of the longest result that it allows; CLOSE measures them."""
    sampling = request.sampling
    per_token = _TOKEN_BYTES + _logprob_bytes(sampling.logprobs)
    reserved = num_request_bytes + sampling.n * sampling.max_tokens * per_token
    prompt_ids = request.prompt_token_ids
    num_prompt_tokens = num_request_bytes // _BYTES_A_TOKEN if prompt_ids is None else len(prompt_ids)
    return reserved + num_prompt_tokens * _logprob_bytes(sampling.prompt_logprobs)


def _logprob_bytes(num_top: int | None) -> int:
    return 0 if num_top is None else _LOGPROB_BYTES * (1 + max(0, num_top))
