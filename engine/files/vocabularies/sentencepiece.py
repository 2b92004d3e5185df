"""Builds tokenizers that split texts as SentencePiece does, with the `tokenizers` library.

Sources: sentencepiece's src/normalizer.cc, bpe_model.cc and unigram_model.cc.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

__all__ = ["BLANK", "Piece", "PieceType", "SentencePieceModel", "build_sentencepiece"]

BLANK: Final = "\u2581"
"""SentencePiece writes it for a space."""


class PieceType(IntEnum):
    """The types of pieces, in a SentencePiece model and in tokenizer.ggml.token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_TEXT_TYPES: Final = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary; its id is its position."""

    text: str
    score: float
    type: int = PieceType.NORMAL


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """A vocabulary and the rules for white space."""

    pieces: Sequence[Piece]
    is_unigram: bool = False
    """Whether the most probable pieces are chosen, instead of merging pairs of pieces (BPE)."""
    unknown_id: int = 0
    has_prefix: bool = True
    """Whether a text begins with a space that is not in it."""
    prefixes_every_part: bool = True
    """Whether each text between two added tokens gets the prefix, or only the first one."""
    removes_extra_spaces: bool = False
    """Whether spaces around a text are removed, and several in a row are one."""
    character_map: bytes = b""
    """The compiled Unicode normalization; empty: none."""
    whole: Sequence[str] = ()
    """Pieces that BPE matches first, and never merges or splits."""

    @property
    def has_bytes(self) -> bool:
        return any(piece.type == PieceType.BYTE for piece in self.pieces)


def build_sentencepiece(model: SentencePieceModel) -> Tokenizer:
    """Return a tokenizer of the pieces, without added tokens."""
    tokenizer = Tokenizer(_unigram(model) if model.is_unigram else _bpe(model))
    splits: list[pre_tokenizers.PreTokenizer] = []
    if model.has_prefix and not model.prefixes_every_part:
        # It skips the prefix if the text begins with a space, where SentencePiece adds a second one.
        splits.append(pre_tokenizers.Metaspace(BLANK, prepend_scheme="first", split=False))
    if model.whole and not model.is_unigram:
        longest_first = map(re.escape, sorted(model.whole, key=len, reverse=True))
        # `ignore_merges` would take a byte's name in a text for the byte.
        pattern = "|".join([*longest_first, "<(?=0x[0-9A-F]{2}>)"])
        splits.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    if steps := _normalization(model):
        tokenizer.normalizer = steps[0] if len(steps) == 1 else normalizers.Sequence(steps)
    if splits:
        tokenizer.pre_tokenizer = splits[0] if len(splits) == 1 else pre_tokenizers.Sequence(splits)
    readers = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*readers, decoders.Strip(" ", 1, 0)] if model.has_prefix else readers
    )
    return tokenizer


def _normalization(model: SentencePieceModel) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if model.character_map:
        steps.append(normalizers.Precompiled(model.character_map))
    if model.removes_extra_spaces:
        # Only spaces: other white space is ordinary text, unless the character map changes it.
        steps.append(normalizers.Replace(Regex(rf"\A +|[ {BLANK}]+\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if model.has_prefix and model.prefixes_every_part:
        steps.append(normalizers.Prepend(BLANK))
    return [*steps, normalizers.Replace(" ", BLANK)]


def _unigram(model: SentencePieceModel) -> models.Unigram:
    scores = [
        # The bonus that makes them more probable than their parts (Model::EncodeOptimized).
        (piece.text, -0.1 if piece.type == PieceType.USER_DEFINED else piece.score)
        for piece in model.pieces
    ]
    return models.Unigram(scores, model.unknown_id, model.has_bytes)


def _bpe(model: SentencePieceModel) -> models.BPE:
    return models.BPE(
        {piece.text: piece_id for piece_id, piece in enumerate(model.pieces)},
        _merges(model.pieces),
        unk_token=model.pieces[model.unknown_id].text,
        fuse_unk=True,
        byte_fallback=model.has_bytes,
        # A piece that is matched whole has no merges that lead to it.
        ignore_merges=bool(model.whole),
    )


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Return all pairs of pieces that make a piece, sorted by its score, then by the ids of its halves."""
    ids = {piece.text: piece_id for piece_id, piece in enumerate(pieces) if piece.type in _TEXT_TYPES}
    ranked = sorted(ids, key=lambda text: -pieces[ids[text]].score)
    merges: list[tuple[str, str]] = []
    for text in ranked:
        halves = [(text[:at], text[at:]) for at in range(1, len(text))]
        known = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges
