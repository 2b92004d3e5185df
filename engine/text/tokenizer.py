"""Tokenizer and TokenDecoder: the interfaces between text and tokens. ByteTokenizer: needs no file.

Stop strings are not handled here; see detokenizer.py.
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pagefleet.engine.errors import InvalidRequestError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

__all__ = ["NO_TEXTS", "ByteTokenizer", "TokenDecoder", "Tokenizer"]

NO_TEXTS: Final[Mapping[int, str]] = MappingProxyType({})


class TokenDecoder(ABC):
    """Decodes one growing sequence. The result of a call is a function of the tokens so far."""

    texts: Mapping[int, str] = NO_TEXTS
    """Texts of tokens that do not depend on the tokens before them.

    If the next token is in it, `step` returns this text and changes nothing, so it need not be called. Empty
    while a character is incomplete, or before the first token of a text."""

    @abstractmethod
    def step(self, token_id: int) -> str:
        """Add a token and return the text that is now certain: whole characters only, perhaps ""."""

    @abstractmethod
    def flush(self) -> str:
        """Return the text that is held back, an incomplete character as U+FFFD. Ends the decoder."""


class Tokenizer(ABC):
    """One model's tokenizer and chat template."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of ids that the tokenizer knows: 0 .. vocab_size - 1."""

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids. `add_special_tokens` adds those that the model expects around a text."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of the tokens. Ids outside of the vocabulary add nothing."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that the token spells, perhaps a part of a character; b"" for an unknown id."""

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template, or None."""
        return None

    @property
    def end_token_ids(self) -> Sequence[int]:
        """The tokens that end a text or an assistant's message, as far as the tokenizer's files name them."""
        return ()

    def is_added(self, token_id: int) -> bool:
        """Return whether the token was added to the vocabulary, as all special tokens are."""
        return False

    @abstractmethod
    def token_name(self, token_id: int) -> str:
        """Return the vocabulary's name of the token, which may differ from its text; "" for an unknown id."""

    @abstractmethod
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Return the token ids of the conversation.

        `tools` are the functions that the assistant may call, `variables` are passed to the template. With
        `add_generation_prompt` the ids end where the assistant's next message begins.

        Raises InvalidRequestError with code "chat_template" if the template rejects the messages.
        """

    @abstractmethod
    def for_grammars(self, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
        """Return the vocabulary for llguidance: the bytes of each token, and the tokens that end a text.

        Raises ModuleNotFoundError if llguidance is not installed.
        """

    @abstractmethod
    def decoder(
        self,
        skip_special_tokens: bool = True,
        kept: Collection[str] = (),
        prompt_token_ids: Sequence[int] = (),
    ) -> TokenDecoder:
        """Return a decoder for the tokens that follow `prompt_token_ids`.

        Its text is what these tokens add to that of the prompt: a SentencePiece token keeps the space before
        it unless it begins the text, and a character that begins in the prompt is returned whole. The special
        tokens in `kept` are never skipped.
        """

    def decode_prompt(self, prompt_token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the prompt's text without an incomplete last character, which belongs to what follows."""
        return "".join(map(self.decoder(skip_special_tokens).step, prompt_token_ids))


class ByteTokenizer(Tokenizer):
    """Token i is the byte i; three special tokens follow, then ids without a meaning.

    For tests and engines without a model: it needs no file and can encode every text.
    """

    NUM_BYTES = 256
    BOS_TOKEN_ID = 256
    EOS_TOKEN_ID = 257
    PAD_TOKEN_ID = 258
    _NUM_CONTEXT_TOKENS = 8
    SPECIAL_TOKENS = {BOS_TOKEN_ID: "<|bos|>", EOS_TOKEN_ID: "<|eos|>", PAD_TOKEN_ID: "<|pad|>"}  # noqa: RUF012

    def __init__(self, vocab_size: int = 259) -> None:
        assert vocab_size > self.PAD_TOKEN_ID, vocab_size
        self._vocab_size = vocab_size

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        # A lone surrogate is not a character: replace it with "?" instead of failing.
        token_ids = list(text.encode("utf-8", errors="replace"))
        return [self.BOS_TOKEN_ID, *token_ids] if add_special_tokens else token_ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        decoder = self.decoder(skip_special_tokens)
        return "".join(map(decoder.step, token_ids)) + decoder.flush()

    def token_bytes(self, token_id: int) -> bytes:
        if 0 <= token_id < self.NUM_BYTES:
            return bytes((token_id,))
        return self.SPECIAL_TOKENS.get(token_id, "").encode()

    def token_name(self, token_id: int) -> str:
        if 0 <= token_id < self.NUM_BYTES:
            return chr(token_id) if 0x20 < token_id < 0x7F else f"<0x{token_id:02X}>"
        return self.SPECIAL_TOKENS.get(token_id, "")

    def is_added(self, token_id: int) -> bool:
        return token_id in self.SPECIAL_TOKENS

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """A line `role: content` for each message, then `assistant: ` and the variable `opening`.

        Tools, variables and further keys of a message become lines of JSON.
        """
        lines = [f"{json.dumps(each)}\n" for each in (tools, variables) if each]
        for message in messages:
            more = {key: value for key, value in message.items() if key not in ("role", "content", "name")}
            lines.append(f"{_text_of(message, 'role')}: {_text_of(message, 'content')}\n")
            lines += [f"{json.dumps(more)}\n"] if more else []
        opening = (variables or {}).get("opening", "")
        return self.encode("".join(lines) + (f"assistant: {opening}" if add_generation_prompt else ""))

    def for_grammars(self, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(
            TokenizerWrapper(_TokenizerForGrammars()), n_vocab=vocab_size, eos_token=list(eos_token_ids)
        )

    def decoder(
        self,
        skip_special_tokens: bool = True,
        kept: Collection[str] = (),
        prompt_token_ids: Sequence[int] = (),
    ) -> TokenDecoder:
        skipped = {token_id for token_id, name in self.SPECIAL_TOKENS.items() if name not in kept}
        decoder = _ByteDecoder(skipped if skip_special_tokens else frozenset())
        for token_id in prompt_token_ids[-self._NUM_CONTEXT_TOKENS :]:
            decoder.step(token_id)
        return decoder


class _TokenizerForGrammars:
    """The attributes that llguidance reads from a foreign tokenizer."""

    bos_token_id = ByteTokenizer.BOS_TOKEN_ID
    eos_token_id = ByteTokenizer.EOS_TOKEN_ID
    special_token_ids = tuple(ByteTokenizer.SPECIAL_TOKENS)
    tokens = tuple(
        [bytes((byte,)) for byte in range(ByteTokenizer.NUM_BYTES)]
        + [name.encode() for name in ByteTokenizer.SPECIAL_TOKENS.values()]
    )

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


_ASCII: Final = {byte: chr(byte) for byte in range(128)}


class _ByteDecoder(TokenDecoder):
    def __init__(self, skipped: Collection[int]) -> None:
        self._skipped = skipped
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.texts = _ASCII

    def step(self, token_id: int) -> str:
        if 0 <= token_id < ByteTokenizer.NUM_BYTES:
            text = self._utf8.decode(bytes((token_id,)))
            self.texts = NO_TEXTS if self._utf8.getstate()[0] else _ASCII
            return text
        special = ByteTokenizer.SPECIAL_TOKENS.get(token_id)
        if special is None or token_id in self._skipped:
            return ""
        # A special token between the bytes of a character leaves the first part incomplete.
        return self.flush() + special

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self.texts = _ASCII
        return text


def _text_of(message: Mapping[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str):
        raise InvalidRequestError(
            f"messages: {key!r} of each message must be a string, not {value!r}.", "chat_template", "messages"
        )
    return value
