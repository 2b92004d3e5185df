"""Reads a SentencePiece model (tokenizer.model), which is a protocol buffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

from pagefleet.engine.dependencies import install_command
from pagefleet.engine.errors import MissingDependencyError, ModelLoadError
from pagefleet.engine.files.vocabularies.sentencepiece import Piece, PieceType, SentencePieceModel

__all__ = ["SentencePieceFile", "read_sentencepiece"]

_UNIGRAM: Final = 1
_BPE: Final = 2
_KINDS: Final = {3: "word", 4: "char"}


class SentencePieceFile(NamedTuple):
    """The content of the file."""

    model: SentencePieceModel
    special_tokens: dict[str, str]
    """`unk_token`, `bos_token`, `eos_token` and `pad_token`, as far as the model has them."""


def read_sentencepiece(path: Path) -> SentencePieceFile:
    """Raise MissingDependencyError, or ModelLoadError if the file is damaged or of a kind that is not
    supported."""
    proto = _parse(path)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type not in (_UNIGRAM, _BPE):
        raise ModelLoadError(
            f"{path} is a SentencePiece model of the type {_KINDS.get(trainer.model_type)!r}, which is not "
            "supported, only bpe and unigram; use a model that has a tokenizer.json."
        )
    if trainer.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
        raise ModelLoadError(
            f"{path} marks spaces in a way that is not supported (treat_whitespace_as_suffix or "
            "escape_whitespaces); use a model that has a tokenizer.json."
        )
    pieces = [Piece(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    model = SentencePieceModel(
        pieces=pieces,
        is_unigram=trainer.model_type == _UNIGRAM,
        unknown_id=next(index for index, piece in enumerate(pieces) if piece.type == PieceType.UNKNOWN),
        has_prefix=normalizer.add_dummy_prefix,
        removes_extra_spaces=normalizer.remove_extra_whitespaces,
        character_map=normalizer.precompiled_charsmap,
    )
    named = {name: getattr(trainer, f"{name}_id") for name in ("unk", "bos", "eos", "pad")}
    special = {f"{name}_token": pieces[each].text for name, each in named.items() if 0 <= each < len(pieces)}
    return SentencePieceFile(model, special)


def _parse(path: Path) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ModuleNotFoundError as error:
        package = "sentencepiece" if error.name == "sentencepiece" else "protobuf"
        raise MissingDependencyError(package, install_command(package)) from error
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ModelLoadError(f"{path} is not a SentencePiece model ({error}); download it again.") from error
    types = {piece.type for piece in proto.pieces}
    if PieceType.UNKNOWN not in types:
        raise ModelLoadError(f"{path} is not a whole SentencePiece model; download it again.")
    return proto
