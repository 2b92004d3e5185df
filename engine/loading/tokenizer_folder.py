"""tokenizer_folder: the folder with a checkpoint's tokenizer.json, which may have to be converted.

A conversion is made once and kept in the cache (model_cache.py).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer

from pagefleet.engine.dependencies import install_command
from pagefleet.engine.errors import MissingDependencyError, ModelLoadError
from pagefleet.engine.files.json_file import read_optional_json_object
from pagefleet.engine.files.vocabularies.byte_ranks import RankedVocabulary
from pagefleet.engine.files.vocabularies.sentencepiece import (
    PieceType,
    SentencePieceModel,
    build_sentencepiece,
)
from pagefleet.engine.files.vocabularies.sentencepiece_file import read_sentencepiece
from pagefleet.engine.files.vocabularies.tekken import read_tekken, tekken_chat_template
from pagefleet.engine.files.vocabularies.tiktoken_file import is_tiktoken, read_tiktoken
from pagefleet.engine.loading.model_cache import entry_name, get_or_convert
from pagefleet.engine.text.added_tokens import (
    ADDED_TOKENS,
    add_sequence_ends,
    begins_with_bos,
    read_added_tokens,
    sequence_ends,
)
from pagefleet.engine.text.template_files import (
    SPECIAL_TOKENS_MAP,
    TEMPLATE,
    TEMPLATE_FOLDER,
    TOKENIZER_CONFIG,
    read_chat_templates,
    read_special_tokens,
)

__all__ = ["tokenizer_folder"]

TEKKEN: Final = "tekken.json"
SENTENCEPIECE: Final = "tokenizer.model"
_CONVERSION: Final = "1"
"""The version of the conversions; to be increased if their output changes."""
_CONFIGURATION: Final = (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS, "config.json", TEMPLATE)


def tokenizer_folder(folder: Path, cache_dir: Path) -> Path:
    """Return `folder` itself if it has a tokenizer.json, else the folder of the converted tokenizer.

    Raises MissingDependencyError, or ModelLoadError if a file cannot be converted.
    """
    if (folder / "tokenizer.json").is_file():
        return folder
    name, write = _conversion(folder)
    digest = hashlib.sha256(_CONVERSION.encode())
    for path in [*(folder / each for each in name), *_configuration(folder)]:
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.name} {len(content)} ".encode() + content)
    entry = entry_name(f"{folder.name}-tokenizer", digest.hexdigest())
    return get_or_convert(cache_dir, entry, str(folder), write)


def _conversion(folder: Path) -> tuple[tuple[str, ...], Callable[[Path], None]]:
    """Return the names of the vocabulary's files, and the function that writes the converted folder."""
    if (folder / TEKKEN).is_file():
        return (TEKKEN,), lambda target: _write_tekken(folder, target)
    model = folder / SENTENCEPIECE
    if model.is_file() and is_tiktoken(model):
        return (SENTENCEPIECE,), lambda target: _write_ranked(folder, target, read_tiktoken(model))
    if model.is_file():
        return (SENTENCEPIECE,), lambda target: _write_sentencepiece(folder, target)
    names = ("vocab.json", "merges.txt")
    return names, lambda target: _convert_with_transformers(folder, target)


def _configuration(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in _CONFIGURATION)
    yield from sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))


def _convert_with_transformers(folder: Path, target: Path) -> None:
    """Run convert.py as a process: its memory is freed, and the worker does not import transformers."""
    if importlib.util.find_spec("transformers") is None:
        raise MissingDependencyError("transformers", install_command("transformers"))
    command = [sys.executable, "-m", "pagefleet.engine.loading.convert", str(target), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelLoadError(f"{folder} cannot be converted: {reason}")


def _write_tekken(folder: Path, target: Path) -> None:
    """Convert tekken.json. If the folder has no chat template, it gets that of mistral-common."""
    file = read_tekken(folder / TEKKEN)
    has_template = bool(read_chat_templates(folder, {}))
    _write_ranked(folder, target, file, None if has_template else tekken_chat_template(folder / TEKKEN))


def _write_ranked(
    folder: Path, target: Path, file: RankedVocabulary, chat_template: str | None = None
) -> None:
    config = read_optional_json_object(folder / TOKENIZER_CONFIG)
    defaults = {name: token for name, token in file.special_tokens.items() if name not in config}
    named = {**defaults, **read_special_tokens(folder)}
    add_sequence_ends(file.tokenizer, *sequence_ends(config, named, with_bos=True))
    file.tokenizer.save(str(target / "tokenizer.json"))
    if chat_template is not None:
        defaults["chat_template"] = chat_template
    _write_configuration(folder, target, defaults)


def _write_sentencepiece(folder: Path, target: Path) -> None:
    """Convert tokenizer.model by the rules of SentencePiece and of transformers' slow tokenizers."""
    file = read_sentencepiece(folder / SENTENCEPIECE)
    config = read_optional_json_object(folder / TOKENIZER_CONFIG)
    added = read_added_tokens(folder)
    pieces = [
        replace(piece, text=added[index].content) if index in added else piece
        for index, piece in enumerate(file.model.pieces)
    ]
    prefix = config.get("add_prefix_space")
    model = replace(
        file.model,
        pieces=pieces,
        has_prefix=file.model.has_prefix if prefix is None else bool(prefix),
        # transformers' `legacy`: on unless it is set to false.
        prefixes_every_part=config.get("legacy") is not False,
        whole=[
            piece.text
            for index, piece in enumerate(pieces)
            if piece.type == PieceType.USER_DEFINED and index not in added
        ],
    )
    tokenizer = build_sentencepiece(model)
    _add_tokens(tokenizer, model, added)
    defaults = {name: token for name, token in file.special_tokens.items() if name not in config}
    named = {**defaults, **read_special_tokens(folder)}
    ends = sequence_ends(config, named, with_bos=begins_with_bos(config))
    add_sequence_ends(tokenizer, *ends)
    tokenizer.save(str(target / "tokenizer.json"))
    _write_configuration(folder, target, defaults)


def _add_tokens(tokenizer: Tokenizer, model: SentencePieceModel, added: dict[int, AddedToken]) -> None:
    """Add the tokens that are matched in a text before it is split, each with its own id."""
    control = {
        index: AddedToken(piece.text, normalized=False, special=True)
        for index, piece in enumerate(model.pieces)
        if piece.type in (PieceType.CONTROL, PieceType.UNKNOWN)
    }
    for token_id, token in sorted({**control, **added}.items()):
        # Ids without a token.
        while (next_id := tokenizer.get_vocab_size()) < token_id:
            tokenizer.add_tokens([AddedToken(f"<|unused_{next_id}|>", normalized=False)])
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != token_id:
            raise ModelLoadError(
                f"The added token {token.content!r} has the id {token_id}, but the vocabulary has it as id "
                f"{tokenizer.token_to_id(token.content)}; correct {TOKENIZER_CONFIG} or {ADDED_TOKENS}."
            )


def _write_configuration(folder: Path, target: Path, defaults: dict[str, str]) -> None:
    """Copy templates and special tokens, with `defaults` for those that the configuration does not name."""
    config = {**defaults, **read_optional_json_object(folder / TOKENIZER_CONFIG)}
    (target / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    for path in _configuration(folder):
        if path.is_file() and path.name not in (TOKENIZER_CONFIG, ADDED_TOKENS, "config.json"):
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
