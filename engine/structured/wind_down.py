"""WindDown: closes a JSON text within its last tokens.

A small model can stay in one string or list until `max_tokens` cuts the text off. With
`StructuredOutput.wind_down` the last quarter of `max_tokens` is reserved for closing what is open. This
module narrows one mask at a time: it removes tokens that the grammar allows, never all of them.
"""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray

__all__ = ["STOP_REASON", "WindDown", "begins_at"]

STOP_REASON: Final = "wind_down"
"""Stop reason of a text that was closed in this way, and might have been longer otherwise."""

# A string is open if a letter may come that begins no literal (true, false, null).
_IN_STRING: Final = "[zqZQ]"
_QUOTE: Final = '"'
# Outside of strings, the first of these that the grammar allows: close; begin (or end) a string, which is
# usually the shortest value; continue with what is still required.
_PREFERRED: Final = (r"[}\]]+", _QUOTE, ", ?")
# A pattern may keep a string open. A few of these characters can let it end ("@a" in an address, "Z" in a
# time, ".0.0" in a version); otherwise the model may repeat itself without end.
_FILLERS: Final = "01aAZSD-_.:/@+T# "
_MAX_TRIES: Final = 600
"""Each takes ten microseconds."""
_SCALAR: Final = r"[0-9tfn-](?s:.)*"
# Only brackets: a longer token may open an object and also begin a property that is not required.
_OPENING: Final = r"[\[{][}\]]*"


def begins_at(max_output_tokens: int) -> int:
    """Return the position of the first output token that closes the text."""
    return max_output_tokens - max_output_tokens // 4


class WindDown:
    """The masks for one vocabulary."""

    def __init__(self, vocabulary: LLTokenizer) -> None:
        self._in_string = _first_tokens(vocabulary, _IN_STRING)
        self._quote = _first_tokens(vocabulary, _QUOTE)
        self._preferred = [_first_tokens(vocabulary, regex) for regex in _PREFERRED]
        self._values = [_first_tokens(vocabulary, regex) for regex in (_SCALAR, _OPENING)]
        self._ends = _packed(vocabulary.eos_tokens, len(self._quote))
        self._quote_id = _ids(self._quote)[0]
        fillers = chain.from_iterable(_ids(_first_tokens(vocabulary, f"[{each}]")) for each in _FILLERS)
        self._fillers = list(fillers)

    def narrow(self, packed: NDArray[np.int32], matcher: LLMatcher) -> None:
        """Keep in `packed`, the matcher's mask, the tokens that bring the text nearer to its end."""
        # The library's own masks have one word more if the vocabulary fills the last one.
        size = len(packed)
        if not (packed & self._ends[:size]).any() and (token_id := self._forced(packed, matcher)) is not None:
            packed[:] = _packed([token_id], size)
            return
        in_string = (packed & self._in_string[:size]).any()
        for kind in [self._ends, self._quote] if in_string else [self._ends, *self._preferred]:
            if (chosen := packed & kind[:size]).any():
                packed[:] = chosen
                return
        token_id = self._filler(matcher)
        if token_id is not None:
            packed[:] = _packed([token_id], size)
            return
        for kind in self._values:
            if (chosen := packed & kind[:size]).any():
                packed[:] = chosen
                return

    def _forced(self, packed: NDArray[np.int32], matcher: LLMatcher) -> int | None:
        """Return the first token of the text that must follow, if there is only one such text.

        The tokens are those of the tokenizer; a model at a high temperature might spell it letter by letter.
        """
        forced = matcher.compute_ff_tokens()
        return forced[0] if forced and packed[forced[0] // 32] >> (forced[0] % 32) & 1 else None

    def _filler(self, matcher: LLMatcher) -> int | None:
        """Return the first of the fewest filler tokens after which the string may end, or None.

        A breadth-first search, bounded by _MAX_TRIES.
        """
        prefixes: deque[list[int]] = deque([[]])
        num_tries = 0
        while prefixes and num_tries < _MAX_TRIES:
            prefix = prefixes.popleft()
            for filler in self._fillers:
                tokens = [*prefix, filler]
                num_valid = matcher.validate_tokens([*tokens, self._quote_id])
                if num_valid > len(tokens):
                    return tokens[0]
                if num_valid == len(tokens):
                    prefixes.append(tokens)
            num_tries += len(self._fillers)
        return None


def _first_tokens(vocabulary: LLTokenizer, regex: str) -> NDArray[np.int32]:
    """Return the mask of the tokens that can begin a text that matches `regex`."""
    import numpy as np
    from llguidance import LLMatcher

    matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_regex(regex), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return np.frombuffer(matcher.compute_bitmask(), dtype=np.int32)


def _packed(token_ids: list[int], size: int) -> NDArray[np.int32]:
    import numpy as np

    bits = np.zeros(size * 32, dtype=np.uint8)
    bits[token_ids] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def _ids(packed: NDArray[np.int32]) -> list[int]:
    import numpy as np

    ids: list[int] = np.flatnonzero(np.unpackbits(packed.view(np.uint8), bitorder="little")).tolist()
    return ids
