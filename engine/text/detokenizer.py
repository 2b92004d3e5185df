"""IncrementalDetokenizer: turns a sequence's tokens into text, up to a stop string.

Does not know stop tokens, lengths or the end-of-sequence token: the engine calls `flush` when they end it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.text.tokenizer import NO_TEXTS, TokenDecoder, Tokenizer

__all__ = ["Detokenized", "IncrementalDetokenizer", "look_up"]


class Detokenized(NamedTuple):
    """The effect of one token on the text."""

    text: str
    """The text to add."""
    stop: str | None
    """The stop string that the token completed, which ends the text; None if it did not."""


class _Match(NamedTuple):
    end: int
    start: int
    stop: str


class IncrementalDetokenizer:
    """Turns tokens into text and holds back what may become a stop string.

    Decoded text is released except for its longest end that may become a stop string:

        text so far   [ released ........ | held ]      held is a proper prefix of a stop string, or empty
        next token                               [ new ]

    The text that token i adds is a function of the prompt and of the tokens 0..i, so a stream that was cut
    anywhere continues identically after its tokens are replayed. The stop string that ends first counts, and
    the longest of several that end together: the result does not depend on the boundaries of the tokens.
    """

    __slots__ = ("_decoder", "_held", "_include_stop", "_min_tokens", "_num_tokens", "_stop", "texts")

    texts: Mapping[int, str]
    """Texts of tokens that do not depend on the tokens before them. If the next token is in it, `append`
    returns this text and changes nothing. Empty while text is held back, and if there are stop strings."""

    def __init__(
        self, tokenizer: Tokenizer, sampling_params: SamplingParams, prompt_token_ids: Sequence[int] = ()
    ) -> None:
        self._decoder: TokenDecoder = tokenizer.decoder(
            sampling_params.skip_special_tokens, sampling_params.kept_special_tokens, prompt_token_ids
        )
        self._stop = sampling_params.stop
        self._include_stop = sampling_params.include_stop_str_in_output
        self._min_tokens = sampling_params.min_tokens
        self._num_tokens = 0
        self._held = ""
        self.texts = NO_TEXTS if self._stop else self._decoder.texts

    def append(self, token_id: int) -> Detokenized:
        """Add the next token. Do not call it again after it has returned a stop string."""
        self._num_tokens += 1
        new = self._decoder.step(token_id)
        if not self._stop:
            self.texts = self._decoder.texts
            return Detokenized(new, None)
        if not new:
            return Detokenized("", None)
        text = self._held + new
        match = self._find_stop(text) if self._num_tokens >= self._min_tokens else None
        if match is not None:
            self._held = ""
            return Detokenized(text[: match.end if self._include_stop else match.start], match.stop)
        num_held = self._num_held(text)
        self._held = text[len(text) - num_held :]
        return Detokenized(text[: len(text) - num_held], None)

    def flush(self) -> str:
        """Return all text that is held back, because the sequence ended without a stop string."""
        text = self._held + self._decoder.flush()
        self._held = ""
        self.texts = NO_TEXTS
        return text

    def _find_stop(self, text: str) -> _Match | None:
        # A stop string that ends within the held text was found (or ignored, before min_tokens) with an
        # earlier token: only those that end in the new text count.
        matches = []
        for stop in self._stop:
            start = text.find(stop, max(0, len(self._held) - len(stop) + 1))
            if start >= 0:
                matches.append(_Match(start + len(stop), start, stop))
        return min(matches, default=None)

    def _num_held(self, text: str) -> int:
        return max(_overlap(text, stop) for stop in self._stop)


def look_up(detokenizers: Iterable[IncrementalDetokenizer], token_ids: Iterable[int]) -> list[str | None]:
    """Return the text of the next token of each sequence, or None if `append` must be called for it.

    Changes no detokenizer: if there is a text, `append` would return it and change nothing either. It takes a
    tenth of a microsecond for each token.
    """
    return [each.texts.get(token_id) for each, token_id in zip(detokenizers, token_ids, strict=True)]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
