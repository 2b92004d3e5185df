"""Tokens that a checkpoint's configuration adds to a tokenizer: to its vocabulary, and around each text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, processors

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.json_file import read_optional_json_object
from pagefleet.engine.text.template_files import SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG, read_special_tokens

__all__ = ["ADDED_TOKENS", "add_sequence_ends", "begins_with_bos", "read_added_tokens", "sequence_ends"]

ADDED_TOKENS: Final = "added_tokens.json"
_FLAGS: Final = ("lstrip", "rstrip", "single_word")
_CLASSES_WITH_BOS: Final = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", None)
"""Classes of transformers that begin a text with BOS unless the configuration forbids it."""


def read_added_tokens(folder: Path) -> dict[int, AddedToken]:
    """Return the tokens by id: `added_tokens_decoder` of tokenizer_config.json, or else added_tokens.json.

    Raises ModelLoadError if a file has the wrong form.
    """
    declared = read_optional_json_object(folder / TOKENIZER_CONFIG).get("added_tokens_decoder")
    try:
        if declared is not None:
            return {int(token_id): _added_token(token) for token_id, token in sorted(declared.items())}
        ids = read_optional_json_object(folder / ADDED_TOKENS)
        special = _special_texts(folder)
        return {
            int(token_id): AddedToken(text, normalized=False, special=text in special)
            for text, token_id in ids.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        file = ADDED_TOKENS if declared is None else TOKENIZER_CONFIG
        raise ModelLoadError(
            f"{folder / file}: the added tokens have the wrong form ({error}); fetch the file again."
        ) from error


def begins_with_bos(config: Mapping[str, Any]) -> bool:
    """Return whether the tokenizer class begins a text with BOS if `add_bos_token` is not given."""
    name = config.get("tokenizer_class")
    return (name.removesuffix("Fast") if isinstance(name, str) else None) in _CLASSES_WITH_BOS


def sequence_ends(
    config: Mapping[str, Any], named: Mapping[str, str], *, with_bos: bool
) -> tuple[str | None, str | None]:
    """Return the tokens before and after each text, for a vocabulary that does not say so.

    Args:
        config: the content of tokenizer_config.json: `add_bos_token` and `add_eos_token`.
        named: the special tokens by name.
        with_bos: whether a text begins with BOS if `config` does not say so.
    """
    return (
        named.get("bos_token") if config.get("add_bos_token", with_bos) else None,
        named.get("eos_token") if config.get("add_eos_token", False) else None,
    )


def add_sequence_ends(tokenizer: Tokenizer, before: str | None, after: str | None) -> None:
    """Make the tokenizer add these tokens. A token that is not in the vocabulary is left out."""
    ids = {token: tokenizer.token_to_id(token) for token in (before, after) if token is not None}
    known = [(token, token_id) for token, token_id in ids.items() if token_id is not None]
    if not known:
        return
    parts = [each for each in (before, "$A", after) if each == "$A" or ids.get(each or "") is not None]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=parts, pair=[*parts, "$B"], special_tokens=known
    )


def _added_token(token: Mapping[str, Any]) -> AddedToken:
    # Added tokens are found in the text itself, before it is normalized.
    flags = {flag: bool(token.get(flag)) for flag in _FLAGS}
    return AddedToken(token["content"], normalized=False, special=bool(token.get("special")), **flags)


def _special_texts(folder: Path) -> set[str]:
    declared = {
        **read_optional_json_object(folder / TOKENIZER_CONFIG),
        **read_optional_json_object(folder / SPECIAL_TOKENS_MAP),
    }
    more = declared.get("additional_special_tokens") or []
    texts = [token["content"] if isinstance(token, dict) else token for token in more]
    return {*texts, *read_special_tokens(folder).values()}
