"""HFTokenizer: a checkpoint's tokenizer.json and chat templates, read with the `tokenizers` library.

transformers is not used, because importing it would delay a worker's start by seconds.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tokenizers

from pagefleet.engine.errors import InvalidRequestError, ModelLoadError
from pagefleet.engine.files.json_file import read_json_object, read_optional_json_object
from pagefleet.engine.files.vocabularies.byte_ranks import byte_alphabet
from pagefleet.engine.text.added_tokens import add_sequence_ends, sequence_ends
from pagefleet.engine.text.chat_template import ChatTemplate
from pagefleet.engine.text.hf_decoders import (
    ByteLevelDecoder,
    WindowDecoder,
    has_independent_tokens,
    is_byte_level,
)
from pagefleet.engine.text.template_files import (
    TOKENIZER_CONFIG,
    read_chat_templates,
    read_special_tokens,
)
from pagefleet.engine.text.tokenizer import TokenDecoder, Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_LONG_CHARS: Final = 4096
"""Texts up to this length take about a millisecond."""
_NUM_CONTEXT_TOKENS: Final = 8
"""Tokens at the end of a prompt that affect how the next text begins; more than the bytes of a character."""
_IN_CHARACTER: Final = re.compile(rb"[\x80-\xbf]")
"""A continuation byte of UTF-8."""


class HFTokenizer(Tokenizer):
    """The tokenizer of a checkpoint folder.

    Args:
        chat_template: the source of a template that replaces those of the folder.

    Raises ModelLoadError if tokenizer.json is missing, or if a file cannot be read.
    """

    def __init__(self, folder: Path, chat_template: str | None = None) -> None:
        path = self._path = folder / "tokenizer.json"
        try:
            # The file may contain padding and truncation settings of a training run.
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
        # The library raises bare Exception for every fault.
        except Exception as error:
            raise ModelLoadError(
                f"{path} cannot be read as a tokenizer ({error}); fetch the file again."
            ) from error
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added = {token_id: token.content.encode("utf-8") for token_id, token in added.items()}
        decoder = read_json_object(path).get("decoder")
        self._is_byte_level = is_byte_level(decoder)
        self._has_independent_tokens = has_independent_tokens(decoder)
        # What the decoders find, which they share.
        self._texts: dict[int, str] = {}
        special_tokens = read_special_tokens(folder)
        self._add_sequence_ends(folder, special_tokens)
        self._eos_token = special_tokens.get("eos_token")
        if chat_template is None:
            templates = read_chat_templates(folder, special_tokens)
        else:
            templates = {"default": ChatTemplate(chat_template, special_tokens)}
        self._chat_template = templates.get("default")
        self._tool_template = templates.get("tool_use", self._chat_template)

    def _add_sequence_ends(self, folder: Path, special_tokens: Mapping[str, str]) -> None:
        """Honour `add_bos_token` and `add_eos_token` if tokenizer.json adds no tokens to a text."""
        if self._tokenizer.num_special_tokens_to_add(False) == 0:
            config = read_optional_json_object(folder / TOKENIZER_CONFIG)
            add_sequence_ends(self._tokenizer, *sequence_ends(config, special_tokens, with_bos=False))

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        # A lone surrogate is not a character: replace it with "?" instead of failing.
        text = text.encode("utf-8", errors="replace").decode("utf-8")
        if len(text) > _LONG_CHARS:
            # encode() holds the GIL until it is done, for a megabyte longer than a worker's lease lasts;
            # encode_batch_fast() releases it.
            (found,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return found.ids
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        if self._is_byte_level:
            # The library would decode added tokens with the byte alphabet too.
            skipped = self._special_ids if skip_special_tokens else frozenset[int]()
            token_bytes = (self.token_bytes(token_id) for token_id in token_ids if token_id not in skipped)
            return b"".join(token_bytes).decode("utf-8", errors="replace")
        known = [token_id for token_id in token_ids if 0 <= token_id < self.vocab_size]
        return self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        if self._is_byte_level:
            # An added token is plain text, even if all its letters are in the byte alphabet.
            return self._added.get(token_id) or _bytes_of(token)
        # SentencePiece writes a raw byte as <0xNN> and a space as U+2581.
        byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
        return bytes.fromhex(byte[1]) if byte is not None else token.replace("\u2581", " ").encode()

    def token_name(self, token_id: int) -> str:
        return (self._tokenizer.id_to_token(token_id) if token_id >= 0 else None) or ""

    @property
    def end_token_ids(self) -> Sequence[int]:
        """`eos_token`, and the token with which the chat template closes an assistant's message."""
        eos = None if self._eos_token is None else self._tokenizer.token_to_id(self._eos_token)
        closing = self._closing_token_id()
        return [token_id for token_id in (eos, closing) if token_id is not None]

    def _closing_token_id(self) -> int | None:
        answer = "pagefleet"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        if self._chat_template is None:
            return None
        try:
            text = self._chat_template.render(turns, add_generation_prompt=False)
        except InvalidRequestError:
            return None
        _, found, behind = text.rpartition(answer)
        first = self.encode(behind.lstrip(), add_special_tokens=False)[:1] if found else []
        return first[0] if first and self.is_added(first[0]) else None

    def is_added(self, token_id: int) -> bool:
        return token_id in self._added

    @property
    def chat_template(self) -> str | None:
        return None if self._tool_template is None else self._tool_template.source

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        template = self._tool_template if tools else self._chat_template
        if template is None:
            raise InvalidRequestError(
                "messages: this model has no chat template; send a prompt instead, or give the worker a "
                "template with `--chat-template FILE` (in Python: `LLM(model, chat_template=FILE)`).",
                "chat_template",
                "messages",
            )
        # The template writes the special tokens itself.
        text = template.render(messages, tools, variables, add_generation_prompt=add_generation_prompt)
        return self.encode(text, add_special_tokens=False)

    def for_grammars(self, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
        from llguidance import LLTokenizer

        source = str(self._path)
        if self.vocab_size > vocab_size:
            source = _without_tokens_from(vocab_size, read_json_object(self._path))
        return LLTokenizer(source, n_vocab=vocab_size, eos_token=list(eos_token_ids) or None)

    def decoder(
        self,
        skip_special_tokens: bool = True,
        kept: Collection[str] = (),
        prompt_token_ids: Sequence[int] = (),
    ) -> TokenDecoder:
        skipped = self._special_ids if skip_special_tokens else frozenset[int]()
        skipped = skipped.difference(map(self._tokenizer.token_to_id, kept))
        decoder: TokenDecoder
        if self._is_byte_level:
            decoder = ByteLevelDecoder(self, skipped, self._texts)
        else:
            decoder = WindowDecoder(self, skipped, self._texts if self._has_independent_tokens else None)
        for token_id in self._context(prompt_token_ids, skipped):
            decoder.step(token_id)
        return decoder

    def _context(self, prompt_token_ids: Sequence[int], skipped: Collection[int]) -> list[int]:
        """Return the prompt's last few text tokens, beginning at the start of a character.

        The library would not decode the bytes of a character whose beginning is missing, nor those after it.
        """
        text = (token_id for token_id in reversed(prompt_token_ids) if token_id not in skipped)
        last = list(itertools.islice(text, _NUM_CONTEXT_TOKENS))[::-1]
        return list(itertools.dropwhile(lambda each: _IN_CHARACTER.match(self.token_bytes(each)), last))


_BYTES = byte_alphabet()


def _bytes_of(token: str) -> bytes:
    """Return the bytes of a token that is not an added one. Letters outside of the alphabet: plain text."""
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return token.encode("utf-8")


def _without_tokens_from(vocab_size: int, content: Mapping[str, Any]) -> str:
    """Return the content of tokenizer.json without the added tokens that have no row in the embedding."""
    added = [token for token in content["added_tokens"] if token["id"] < vocab_size]
    vocab = content["model"]["vocab"]
    if isinstance(vocab, Mapping):
        vocab = {name: token_id for name, token_id in vocab.items() if token_id < vocab_size}
    return json.dumps({**content, "added_tokens": added, "model": {**content["model"], "vocab": vocab}})
