"""OutputEncoder: convert the engine's outputs to the wire format, which needs the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from pagefleet.api.contract.logprobs import Logprob, TokenLogprobs
from pagefleet.engine.outputs import TokenLogprobs as EngineLogprobs
from pagefleet.engine.text.tokenizer import Tokenizer

_NUM_DIGITS: Final = 6
"""Decimal places of a logprob: the precision of float32."""
_MIN_LOGPROB: Final = -9999.0
"""Replaces minus infinity, which JSON cannot represent. vLLM sends the same value."""


class TokenFieldCache:
    """The wire fields of a model's tokens. Each token is decoded once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._fields: dict[int, dict[str, Any]] = {}

    def get(self, token_id: int) -> dict[str, Any]:
        """Return the fields of a :class:`Logprob`, without the number itself."""
        fields = self._fields.get(token_id)
        if fields is None:
            token_bytes = self._tokenizer.token_bytes(token_id)
            text = token_bytes.decode("utf-8", errors="replace")
            partial = None if text.encode() == token_bytes else list(token_bytes)
            fields = self._fields[token_id] = {"token_id": token_id, "text": text, "token_bytes": partial}
        return fields


class OutputEncoder:
    """Encodes the outputs of one job.

    Args:
        echo: text to send before the first token's text.
    """

    def __init__(self, token_fields: TokenFieldCache, echo: str = "") -> None:
        self._token_fields = token_fields
        self._echo = echo

    def with_echo(self, texts: list[str]) -> list[str]:
        """Return the first texts of a choice; the first one starts with ``echo``."""
        return [self._echo + texts[0], *texts[1:]] if texts and self._echo else texts

    def logprobs(self, found: Iterable[EngineLogprobs]) -> list[TokenLogprobs]:
        # Skip validation: the engine's values are valid, and there are many of them.
        fields = self._token_fields.get
        return [
            TokenLogprobs.model_construct(
                **fields(each.token_id),
                logprob=_number(each.logprob),
                rank=each.rank,
                top=[
                    Logprob.model_construct(**fields(token_id), logprob=_number(logprob))
                    for token_id, logprob in each.top
                ],
            )
            for each in found
        ]


def _number(logprob: float) -> float:
    return round(logprob, _NUM_DIGITS) if math.isfinite(logprob) else _MIN_LOGPROB
