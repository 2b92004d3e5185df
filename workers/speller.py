"""Speller: the engine's outputs in the words of the wire, where only the tokenizer knows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pagefleet.api.logprobs import Logprob, TokenLogprobs
from pagefleet.engine.outputs import TokenLogprobs as EngineLogprobs
from pagefleet.engine.tokenizer import Tokenizer

_NUM_DIGITS = 6
"""Of a logprob: what float32 holds of it."""


class Speller:
    """One job's.

    Args:
        echo: what stands before the first token's text.
    """

    def __init__(self, tokenizer: Tokenizer, echo: str = "") -> None:
        self._tokenizer = tokenizer
        self._echo = echo

    def texts(self, offset: int, texts: Sequence[str]) -> list[str]:
        """The tokens' texts, with the prompt's before the choice's first one where it is to be echoed."""
        return [self._echo + text if offset + index == 0 else text for index, text in enumerate(texts)]

    def logprobs(self, found: Iterable[EngineLogprobs]) -> list[TokenLogprobs]:
        return [
            TokenLogprobs(
                **self._named(each.token_id, each.logprob),
                rank=each.rank,
                top=[Logprob(**self._named(*pair)) for pair in each.top],
            )
            for each in found
        ]

    def _named(self, token_id: int, logprob: float) -> dict[str, Any]:
        spelled = self._tokenizer.token_bytes(token_id)
        text = spelled.decode("utf-8", errors="replace")
        named = {"token_id": token_id, "logprob": round(logprob, _NUM_DIGITS), "text": text}
        return named if text.encode() == spelled else named | {"token_bytes": list(spelled)}
