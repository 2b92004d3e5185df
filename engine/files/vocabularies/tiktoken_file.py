"""Reads Llama 3's tokenizer.model, in tiktoken's format: each line is a piece in base64 and its rank."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Final

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.vocabularies.byte_ranks import RankedVocabulary, build_byte_ranks

__all__ = ["is_tiktoken", "read_tiktoken"]

_NUM_PIECES: Final = 128_000
_NUM_SPECIAL: Final = 256
_LINE: Final = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n")
_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL: Final = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
"""Names of the special tokens, which follow the pieces; those of the other ids are made up as in Llama 3.1's
tokenizer.json."""


def is_tiktoken(path: Path) -> bool:
    with path.open("rb") as file:
        return _LINE.match(file.read(1024)) is not None


def read_tiktoken(path: Path) -> RankedVocabulary:
    """Raise ModelLoadError if the file is damaged, or is not Llama 3's: it does not contain the pattern."""
    try:
        lines = [line.split() for line in path.read_bytes().splitlines()]
        pieces = [base64.b64decode(piece, validate=True) for piece, _ in lines]
        in_order = all(int(rank) == index for index, (_, rank) in enumerate(lines))
    except ValueError as error:
        raise ModelLoadError(f"{path} is not a tiktoken vocabulary ({error}); download it again.") from error
    if len(pieces) != _NUM_PIECES or not in_order:
        raise ModelLoadError(
            f"{path} is a tiktoken vocabulary of {len(pieces)} pieces, and only that of Llama 3 "
            f"({_NUM_PIECES} pieces) is supported; use a model that has a tokenizer.json."
        )
    free = iter(range(_NUM_SPECIAL))
    special = [
        _SPECIAL[index] if index in _SPECIAL else f"<|reserved_special_token_{next(free)}|>"
        for index in range(_NUM_SPECIAL)
    ]
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    return RankedVocabulary(build_byte_ranks(pieces, _PATTERN, last=special), named)
