"""IncrementalDetokenizer: a sequence's tokens as text, up to its stop strings.

Knows nothing of stop tokens, lengths or the end-of-sequence token: the engine ends a sequence, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.text.tokenizer import TokenDecoder, Tokenizer

__all__ = ["Detokenized", "IncrementalDetokenizer"]


class Detokenized(NamedTuple):
    """What one token did to the text."""

    text: str
    """What it adds."""
    stop: str | None
    """The stop string that it completed: the text ends here."""


class _Match(NamedTuple):
    end: int
    start: int
    stop: str


class IncrementalDetokenizer:
    """Turns tokens into text with stop-string hold-back.

    Decoded text is let go except for its longest end that may become a stop string:

        text so far   [ released ........ | held ]      held is a proper prefix of a stop string, or empty
        next token                               [ new ]

    What token i adds is a function of the prompt and of tokens 0..i alone, so a stream that was cut anywhere
    goes on identically after its tokens have been replayed. The stop string that ends first counts, and of
    several that end together the longest: what ends a text doesn't depend on how the tokenizer cuts it.
    """

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

    def append(self, token_id: int) -> Detokenized:
        """Take the next token. After a stop no further token may come."""
        self._num_tokens += 1
        new = self._decoder.step(token_id)
        if not self._stop or not new:
            return Detokenized(new, None)
        text = self._held + new
        match = self._find_stop(text) if self._num_tokens >= self._min_tokens else None
        if match is not None:
            self._held = ""
            return Detokenized(text[: match.end if self._include_stop else match.start], match.stop)
        num_held = self._num_held(text)
        self._held = text[len(text) - num_held :]
        return Detokenized(text[: len(text) - num_held], None)

    def flush(self) -> str:
        """All that is held back: the sequence has ended without a stop string."""
        text = self._held + self._decoder.flush()
        self._held = ""
        return text

    def _find_stop(self, text: str) -> _Match | None:
        # A stop string that ends within the held text was found (or passed over, before min_tokens)
        # when that text came: only those that end in the new text count.
        matches = []
        for stop in self._stop:
            start = text.find(stop, max(0, len(self._held) - len(stop) + 1))
            if start >= 0:
                matches.append(_Match(start + len(stop), start, stop))
        return min(matches, default=None)

    def _num_held(self, text: str) -> int:
        return max(_overlap(text, stop) for stop in self._stop)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
