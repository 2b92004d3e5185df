"""Builds byte-level BPE tokenizers from ranked pieces of bytes, the form of tiktoken's vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

__all__ = ["RankedVocabulary", "build_byte_ranks", "byte_alphabet"]


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: printable bytes are themselves, the others follow in order from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


class RankedVocabulary(NamedTuple):
    """The content of a vocabulary file."""

    tokenizer: Tokenizer
    special_tokens: dict[str, str]
    """By transformers' names, such as `bos_token`."""


def build_byte_ranks(
    pieces: Sequence[bytes], pattern: str, first: Sequence[str] = (), last: Sequence[str] = ()
) -> Tokenizer:
    """Return a tokenizer that splits texts as tiktoken does.

    Args:
        pieces: the ordinary tokens. An earlier one is merged first.
        pattern: the regular expression whose matches are split into pieces one by one.
        first, last: the special tokens, whose ids come before and after those of the pieces.
    """
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    names = ["".join(letters[byte] for byte in piece) for piece in pieces]
    vocab = {name: token_id for token_id, name in enumerate([*first, *names, *last])}
    # tiktoken looks up a whole match before it merges.
    tokenizer = Tokenizer(models.BPE(vocab, _merges(names), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(each, normalized=False, special=True) for each in [*first, *last]]
    )
    return tokenizer


def _merges(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return all pairs of pieces that make a piece, in its order, then in that of their halves."""
    ranks = {name: rank for rank, name in enumerate(names)}
    merges: list[tuple[str, str]] = []
    for name in names:
        halves = [(name[:at], name[at:]) for at in range(1, len(name))]
        known = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges
