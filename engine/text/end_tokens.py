"""end_token_ids: the tokens that end an answer, collected from all files of a checkpoint.

Each file alone is often wrong: config.json is left over from the base model, generation_config.json is
missing or has null, and the tokenizer names the end of a text but not the end of a turn.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.text.tokenizer import Tokenizer

__all__ = ["end_token_ids"]

logger = logging.getLogger(__name__)


def end_token_ids(
    generation: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Tokenizer
) -> tuple[int, ...]:
    """Return the ids that generation_config.json, the tokenizer and config.json name, in this order.

    An id of config.json that is an ordinary word counts only if nothing else is named. Ids outside of the
    vocabulary are ignored. Raises ModelLoadError for values that are not token ids.
    """
    ends = [*_ids(generation, "generation_config.json"), *tokenizer.end_token_ids]
    ends += [each for each in _ids(config, "config.json") if not ends or tokenizer.is_added(each)]
    vocab_size = config.get("vocab_size", tokenizer.vocab_size)
    unknown = sorted({each for each in ends if not 0 <= each < vocab_size})
    if unknown:
        logger.warning("eos_token_id: %s are not in the vocabulary and are ignored", unknown)
    return tuple(dict.fromkeys(each for each in ends if each not in unknown))


def _ids(content: Mapping[str, Any], file: str) -> list[int]:
    value = content.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(each) is int for each in ids):
        raise ModelLoadError(
            f"{file}: eos_token_id must be a token id or a list of token ids, not {value!r}."
        )
    return ids
