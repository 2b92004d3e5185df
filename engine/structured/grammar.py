"""From a StructuredOutput to the tokens that may come next: compiled once, followed by each sequence.

The work is llguidance's (ops/decisions has why): an Earley parser over a lexer of derivatives, whose cost
is bounded by fuel. Nothing here knows tensors, requests or threads but one: compiling lets go of the GIL.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pagefleet.engine.errors import InvalidRequestError, MissingDependencyError
from pagefleet.engine.files.requirements import install_command
from pagefleet.engine.structured.deep_stack import on_deep_stack
from pagefleet.engine.structured.grammar_notations import compiled, sentence
from pagefleet.engine.structured.structured_output import PARAM, StructuredOutput
from pagefleet.engine.structured.wind_down import WindDown, begins_at
from pagefleet.engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray

__all__ = ["Grammar", "GrammarCompiler"]

MAX_CHARS: Final = {"grammar": 16_384}
"""An EBNF is rewritten in time that grows with the square of its length: 4 s for 94,000 characters."""
MAX_CHARS_ELSE: Final = 65_536


class Grammar:
    """Where one text stands in its grammar. A function of the tokens accepted so far: replaying them into a
    copy of the fresh grammar restores it."""

    def __init__(self, matcher: LLMatcher, ending: WindDown | None = None) -> None:
        self.matcher = matcher
        self._ending = ending
        self._ends_from: int | None = None

    def copy(self) -> Grammar:
        """One in the same state that goes its own way."""
        twin = Grammar(self.matcher.deep_copy(), self._ending)
        twin._ends_from = self._ends_from
        return twin

    def limit(self, max_output_tokens: int) -> None:
        """Say how long the text can become."""
        if self._ending is not None:
            self._ends_from = begins_at(max_output_tokens)

    def winds_down(self, position: int) -> bool:
        """Whether the output token at this position serves to bring the text to its end."""
        return self._ends_from is not None and position >= self._ends_from

    def num_valid(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens, in order, may come; they are not taken."""
        return 0 if self.error is not None else int(self.matcher.validate_tokens(list(token_ids)))

    def accept(self, token_id: int) -> str | None:
        """Take the next token; returns why that was not possible, where it was not."""
        # A matcher that ran into a limit lets the end of sequence through, as if the text were complete.
        if (error := self.error) is not None:
            return error
        return None if self.matcher.consume_token(token_id) else self.error or "no reason given"

    @property
    def is_finished(self) -> bool:
        """Nothing can follow: the text is complete, or there is an `error`."""
        return bool(self.matcher.is_stopped())

    @property
    def error(self) -> str | None:
        """Why the grammar can't go on, in one sentence without its full stop."""
        return sentence(self.matcher.get_error()) if self.matcher.is_error() else None

    def narrow(self, packed: NDArray[np.int32], position: int) -> None:
        """Take from the mask of the token at this position what would only make the text longer."""
        if self._ending is not None and self.winds_down(position):
            self._ending.narrow(packed, self.matcher)

    def allowed_token_ids(self, position: int) -> NDArray[np.int64]:
        """The ids that may come next, in order."""
        import numpy as np

        packed = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.int32).copy()
        self.narrow(packed, position)
        return np.flatnonzero(np.unpackbits(packed.view(np.uint8), bitorder="little"))


class GrammarCompiler:
    """Compiles for one vocabulary. Any thread may call it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._vocabulary: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._ending: WindDown | None = None

    def prepare(self) -> LLTokenizer:
        """Make the library's view of the vocabulary, once: a second for 50,000 tokens, holding the GIL."""
        with self._lock:
            if self._vocabulary is None:
                try:
                    self._vocabulary = self._tokenizer.for_grammars(self._vocab_size, self._eos_token_ids)
                except ModuleNotFoundError as error:
                    raise MissingDependencyError("llguidance", install_command("llguidance")) from error
            return self._vocabulary

    def compile(self, wanted: StructuredOutput) -> Grammar:
        """A fresh grammar, for one text: copies share a lexer, which grows with the texts, and its limits.

        Raises InvalidRequestError, code `invalid_grammar`, with the library's reason.
        """
        kind, source = wanted.kind, wanted.source
        if len(source) > (limit := MAX_CHARS.get(kind, MAX_CHARS_ELSE)):
            raise _refused(kind, f"it has {len(source):,} characters, and {limit:,} are the most")
        ending = self._winding_down() if wanted.wind_down else None
        vocabulary = self.prepare()
        try:
            matcher = on_deep_stack(lambda: compiled(vocabulary, kind, source))
        except (ValueError, RuntimeError) as error:
            raise _refused(kind, sentence(str(error))) from None
        return Grammar(matcher, ending)

    def _winding_down(self) -> WindDown:
        vocabulary = self.prepare()
        with self._lock:
            if self._ending is None:
                self._ending = WindDown(vocabulary)
            return self._ending


def _refused(kind: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"This {kind} can't be used: {reason}.", "invalid_grammar", PARAM)
