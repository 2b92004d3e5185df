"""Decoders of tokenizers in the form of tokenizer.json: one for vocabularies of bytes, one for all others."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pagefleet.engine.text.tokenizer import NO_TEXTS, TokenDecoder, Tokenizer

__all__ = ["ByteLevelDecoder", "WindowDecoder", "has_independent_tokens", "is_byte_level"]

REPLACEMENT: Final = "\ufffd"
_BYTE: Final = re.compile("<0x[0-9A-F]{2}>")
"""SentencePiece's name of a token that is one byte."""
_BY_TOKEN: Final = ("Replace", "ByteFallback", "Metaspace", "WordPiece")
"""Parts of a decoder that read one token at a time; ByteFallback joins only byte tokens."""


def is_byte_level(decoder: Mapping[str, Any] | None) -> bool:
    """Return whether the tokens of a tokenizer with this `decoder` spell bytes (GPT-2's alphabet)."""
    parts = _parts(decoder)
    return bool(parts) and all(part["type"] == "ByteLevel" for part in parts)


def has_independent_tokens(decoder: Mapping[str, Any] | None) -> bool:
    """Return whether this `decoder` gives a token the same text after every other one.

    The first token of a text may be an exception, as may tokens that are a part of a character.
    """
    joined = False
    for part in _parts(decoder):
        if part["type"] == "Fuse":
            joined = True
        elif part["type"] == "Strip":
            # From the joined text: of one character, the first token has it.
            if joined and (part["start"] > 1 or part["stop"] > 0):
                return False
        elif joined or part["type"] not in _BY_TOKEN:
            return False
    return True


class ByteLevelDecoder(TokenDecoder):
    """For vocabularies whose tokens spell bytes: decodes each token's bytes as UTF-8.

    Args:
        skipped: tokens without a text.
        found: `texts` as far as known. The decoders of a tokenizer share it and add what they find.
    """

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int], found: dict[int, str]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._found = found
        self.texts = found

    def step(self, token_id: int) -> str:
        text = self.texts.get(token_id)
        if text is not None:
            return text
        if token_id in self._skipped:
            return ""
        was_whole = self.texts is not NO_TEXTS
        text = self._utf8.decode(self._tokenizer.token_bytes(token_id))
        self.texts = NO_TEXTS if self._utf8.getstate()[0] else self._found
        is_whole = was_whole and self.texts is not NO_TEXTS
        if is_whole and text and REPLACEMENT not in text and not self._tokenizer.is_added(token_id):
            self._found[token_id] = text
        return text

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowDecoder(TokenDecoder):
    """For all other tokenizers: decodes the last few tokens again with each new one.

        tokens   ... | context | held back, new |
                  start       read             end

    A token's text may depend on the one before it (SentencePiece's spaces), hence the context. Text that ends
    in U+FFFD may be the beginning of a character and is held back.

    If tokens are independent, any token that is not a byte can stand for the context. So tokens whose texts
    are looked up in `texts` need not enter the window.

    Args:
        skipped: tokens without a text.
        found: `texts` as far as known, shared by the decoders of a tokenizer; None if its tokens are not
            independent.
    """

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int], found: dict[int, str] | None) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._window: list[int] = []
        self._num_context = 0
        self._found = found

    def step(self, token_id: int) -> str:
        text = self.texts.get(token_id)
        if text is not None:
            return text
        if token_id in self._skipped:
            return ""
        has_context_only = 0 < len(self._window) == self._num_context
        self._window.append(token_id)
        new = self._new_text()
        if not new or new.endswith(REPLACEMENT):
            self.texts = NO_TEXTS
            return ""
        del self._window[: self._num_context]
        self._num_context = len(self._window)
        self._look_up(token_id, new if has_context_only else None)
        return new

    def flush(self) -> str:
        new = self._new_text()
        self._window.clear()
        self._num_context = 0
        self.texts = NO_TEXTS
        return new

    def _new_text(self) -> str:
        context = self._tokenizer.decode(self._window[: self._num_context], skip_special_tokens=False)
        return self._tokenizer.decode(self._window, skip_special_tokens=False)[len(context) :]

    def _look_up(self, last: int, text: str | None) -> None:
        """Set `texts` after the token `last`, and add its text, if it is known."""
        self.texts = NO_TEXTS
        tokenizer = self._tokenizer
        if self._found is None or tokenizer.is_added(last) or _BYTE.fullmatch(tokenizer.token_name(last)):
            return
        self.texts = self._found
        if text is not None:
            self._found[last] = text


def _parts(decoder: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    """Return the parts of a sequence of decoders, in order."""
    if decoder is None:
        return ()
    if decoder["type"] == "Sequence":
        return [part for each in decoder["decoders"] for part in _parts(each)]
    return (decoder,)
