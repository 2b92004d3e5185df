"""Grammar: which tokens may come next in one text. GrammarCompiler: makes it from a StructuredOutput.

llguidance does the work (ops/decisions/0010 has the reasons): an Earley parser over a lexer of derivatives,
with a bounded cost for each mask. Does not know tensors or requests.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pagefleet.engine.dependencies import install_command
from pagefleet.engine.errors import InvalidRequestError, MissingDependencyError
from pagefleet.engine.structured.deep_stack import run_on_deep_stack
from pagefleet.engine.structured.grammar_notations import compile_matcher, error_reason
from pagefleet.engine.structured.structured_output import PARAM, StructuredOutput
from pagefleet.engine.structured.wind_down import WindDown, begins_at
from pagefleet.engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray

__all__ = ["Grammar", "GrammarCompiler"]

MAX_CHARS: Final = {"grammar": 16_384}
"""The time to rewrite an EBNF grows with the square of its length: 4 s for 94,000 characters."""
DEFAULT_MAX_CHARS: Final = 65_536


class Grammar:
    """The state of one text in its grammar: which tokens may come next.

    It is a function of the tokens accepted so far; to restore it, accept them again in a copy of the fresh
    grammar.
    """

    def __init__(self, matcher: LLMatcher, wind_down: WindDown | None = None) -> None:
        self.matcher = matcher
        self._wind_down = wind_down
        self._winds_down_from: int | None = None

    def copy(self) -> Grammar:
        """Return an independent grammar in the same state."""
        copied = Grammar(self.matcher.deep_copy(), self._wind_down)
        copied._winds_down_from = self._winds_down_from
        return copied

    def limit(self, max_output_tokens: int) -> None:
        """Set the largest number of output tokens, of which `wind_down` uses the last quarter."""
        if self._wind_down is not None:
            self._winds_down_from = begins_at(max_output_tokens)

    def winds_down(self, position: int) -> bool:
        """Return whether the output token at this position is chosen to close the text."""
        return self._winds_down_from is not None and position >= self._winds_down_from

    def num_valid(self, token_ids: Sequence[int]) -> int:
        """Return how many of these tokens, in order, may come next. The state does not change."""
        return 0 if self.error is not None else int(self.matcher.validate_tokens(list(token_ids)))

    def accept(self, token_id: int) -> str | None:
        """Advance by one token. Return None, or the reason if the token may not come."""
        # A matcher that reached a limit would accept the end of the sequence as if the text were complete.
        if (error := self.error) is not None:
            return error
        return None if self.matcher.consume_token(token_id) else self.error or "llguidance gives no reason"

    @property
    def is_finished(self) -> bool:
        """Whether nothing can follow: the text is complete, or there is an `error`."""
        return bool(self.matcher.is_stopped())

    @property
    def error(self) -> str | None:
        """The reason why the grammar failed, without a full stop; None if it did not."""
        return error_reason(self.matcher.get_error()) if self.matcher.is_error() else None

    def narrow(self, packed: NDArray[np.int32], position: int) -> None:
        """Remove from the mask, in place, the tokens that would only make the text longer.

        `packed`, int32 [ceil(vocab / 32)], has bit t % 32 of word t // 32 set if token t may come at this
        position. Changes nothing unless `winds_down(position)`.
        """
        if self._wind_down is not None and self.winds_down(position):
            self._wind_down.narrow(packed, self.matcher)

    def allowed_token_ids(self, position: int) -> NDArray[np.int64]:
        """Return int64: the ids that may come next, ascending."""
        import numpy as np

        packed = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.int32).copy()
        self.narrow(packed, position)
        return np.flatnonzero(np.unpackbits(packed.view(np.uint8), bitorder="little"))


class GrammarCompiler:
    """Compiles grammars for one vocabulary. Thread-safe; compiling releases the GIL."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._vocabulary: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._wind_down: WindDown | None = None

    def prepare(self) -> LLTokenizer:
        """Return the library's form of the vocabulary.

        The first call makes it, which takes a second for 50,000 tokens and holds the GIL.

        Raises MissingDependencyError if llguidance is not installed.
        """
        with self._lock:
            if self._vocabulary is None:
                try:
                    self._vocabulary = self._tokenizer.for_grammars(self._vocab_size, self._eos_token_ids)
                except ModuleNotFoundError as error:
                    raise MissingDependencyError("llguidance", install_command("llguidance")) from error
            return self._vocabulary

    def compile(self, wanted: StructuredOutput) -> Grammar:
        """Return a fresh grammar for one text.

        Compile once for each text: copies share a lexer, which grows with every text and has limits.

        Raises InvalidRequestError, code `invalid_grammar`, with the reason.
        """
        kind, source = wanted.kind, wanted.source
        if len(source) > (limit := MAX_CHARS.get(kind, DEFAULT_MAX_CHARS)):
            raise _invalid_grammar(kind, f"it has {len(source):,} characters; at most {limit:,} are allowed")
        wind_down = self._vocabulary_wind_down() if wanted.wind_down else None
        vocabulary = self.prepare()
        try:
            matcher = run_on_deep_stack(lambda: compile_matcher(vocabulary, kind, source))
        except (ValueError, RuntimeError) as error:
            raise _invalid_grammar(kind, error_reason(str(error))) from None
        return Grammar(matcher, wind_down)

    def _vocabulary_wind_down(self) -> WindDown:
        vocabulary = self.prepare()
        with self._lock:
            if self._wind_down is None:
                self._wind_down = WindDown(vocabulary)
            return self._wind_down


def _invalid_grammar(kind: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{PARAM}.{kind} cannot be used: {reason}.", "invalid_grammar", PARAM)
