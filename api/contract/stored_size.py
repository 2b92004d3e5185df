"""Estimate the bytes that a job takes on the server. They are reserved for its tenant at submit."""

from __future__ import annotations

from typing import Final

from pagefleet.api.contract.messages import GenerateRequest

_TOKEN_BYTES: Final = 100
"""Of one token in the log and in Celery's result together: id, text and their JSON."""
_LOGPROB_BYTES: Final = 200
"""Of one logprob there: of the token itself or of one of the most likely tokens."""
_BYTES_A_TOKEN: Final = 4
"""Estimated bytes of prompt text for each token."""


def reserved_bytes(request: GenerateRequest, num_request_bytes: int) -> int:
    """Return the bytes of the request and of its longest possible result. CLOSE measures the actual size."""
    sampling = request.sampling
    per_token = _TOKEN_BYTES + _logprob_bytes(sampling.logprobs)
    reserved = num_request_bytes + sampling.n * sampling.max_tokens * per_token
    prompt_ids = request.prompt_token_ids
    num_prompt_tokens = num_request_bytes // _BYTES_A_TOKEN if prompt_ids is None else len(prompt_ids)
    return reserved + num_prompt_tokens * _logprob_bytes(sampling.prompt_logprobs)


def _logprob_bytes(num_top: int | None) -> int:
    return 0 if num_top is None else _LOGPROB_BYTES * (1 + max(0, num_top))
