"""Speller: the engine's outputs in the words of the wire, where only the tokenizer knows them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pagefleet.api.contract.logprobs import Logprob, TokenLogprobs
from pagefleet.engine.outputs import TokenLogprobs as EngineLogprobs
from pagefleet.engine.text.tokenizer import Tokenizer

_NUM_DIGITS: Final = 6
"""Of a logprob: what float32 holds of it."""
_IMPOSSIBLE: Final = -9999.0
"""In place of what JSON can't say, as vLLM does."""


class Spelling:
    """What each token of a model spells by itself; each is looked up once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, dict[str, Any]] = {}

    def fields(self, token_id: int) -> dict[str, Any]:
        """Those of a :class:`Logprob` but for the number."""
        known = self._known.get(token_id)
        if known is None:
            spelled = self._tokenizer.token_bytes(token_id)
            text = spelled.decode("utf-8", errors="replace")
            partial = None if text.encode() == spelled else list(spelled)
            known = self._known[token_id] = {"token_id": token_id, "text": text, "token_bytes": partial}
        return known


class Speller:
    """One job's.

    Args:
        echo: what stands before the first token's text.
    """

    def __init__(self, spelling: Spelling, echo: str = "") -> None:
        self._spelling = spelling
        self._echo = echo

    def texts(self, offset: int, texts: Sequence[str]) -> list[str]:
        """The tokens' texts, with the prompt's before the choice's first one where it is to be echoed."""
        return [self._echo + text if offset + index == 0 else text for index, text in enumerate(texts)]

    def logprobs(self, found: Iterable[EngineLogprobs]) -> list[TokenLogprobs]:
        # Not validated: what the engine says is right, and there are many.
        fields = self._spelling.fields
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
    return round(logprob, _NUM_DIGITS) if math.isfinite(logprob) else _IMPOSSIBLE
