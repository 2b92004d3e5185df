"""Reads Mistral's tekken.json with `mistral-common`, an optional dependency."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagefleet.engine.dependencies import install_command
from pagefleet.engine.errors import MissingDependencyError, ModelLoadError
from pagefleet.engine.files.json_file import read_json_object
from pagefleet.engine.files.vocabularies.byte_ranks import RankedVocabulary, build_byte_ranks

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

__all__ = ["read_tekken", "tekken_chat_template"]

logger = logging.getLogger(__name__)

_NAMES: Final = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def read_tekken(path: Path) -> RankedVocabulary:
    """Raise MissingDependencyError, or ModelLoadError if the file is damaged or of an unknown version."""
    vocabulary = _tekkenizer(path)
    num_special = vocabulary.num_special_tokens
    special = [vocabulary.id_to_piece(token_id) for token_id in range(num_special)]
    pieces = [vocabulary.id_to_byte_piece(each) for each in range(num_special, vocabulary.n_words)]
    tokenizer = build_byte_ranks(pieces, read_json_object(path)["config"]["pattern"], special)
    return RankedVocabulary(tokenizer, {name: token for name, token in _NAMES.items() if token in special})


def tekken_chat_template(path: Path) -> str | None:
    """Return mistral-common's chat template for the file's version; None if it has none."""
    from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template

    try:
        return convert_tokenizer_to_chat_template(path)
    # The library raises several kinds, and a model without a template still completes texts.
    except Exception as error:  # noqa: BLE001
        logger.warning("%s: mistral-common has no chat template for it: %s", path, error)
        return None


def _tekkenizer(path: Path) -> Tekkenizer:
    try:
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    except ModuleNotFoundError as error:
        raise MissingDependencyError("mistral-common", install_command("mistral-common")) from error
    try:
        return Tekkenizer.from_file(path)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(
            f"{path} cannot be read as a tekken tokenizer ({error}); download it again, or install a newer "
            "mistral-common."
        ) from error
