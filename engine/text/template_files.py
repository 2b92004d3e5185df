"""Reads a checkpoint's chat templates and the special tokens that they can name.

The rules are those of transformers 5 (PreTrainedTokenizerBase.from_pretrained), so that a template renders
the same text here as for its authors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.json_file import read_optional_json_object
from pagefleet.engine.text.chat_template import ChatTemplate

TOKENIZER_CONFIG: Final = "tokenizer_config.json"
SPECIAL_TOKENS_MAP: Final = "special_tokens_map.json"
TEMPLATE: Final = "chat_template.jinja"
TEMPLATE_FOLDER: Final = "additional_chat_templates"

STANDARD_NAMES: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_END_OF_TEXT: Final = "<|endoftext|>"
_CLASS_DEFAULTS: Final[Mapping[str, Mapping[str, str]]] = {
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), _END_OF_TEXT),
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END_OF_TEXT),
}
"""Special tokens of transformers' tokenizer classes, unless the configuration names others."""


def read_chat_templates(folder: Path, special_tokens: Mapping[str, str]) -> dict[str, ChatTemplate]:
    """Return the templates by name: "default", and "tool_use" for a conversation with tools.

    Raises ModelLoadError if a file cannot be read or has the wrong form.
    """
    return {name: ChatTemplate(source, special_tokens) for name, source in _sources(folder).items()}


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Return the special tokens by name, such as `bos_token`.

    special_tokens_map.json is read only if tokenizer_config.json has no `added_tokens_decoder`, and then
    takes precedence over it. Raises ModelLoadError if a file has a value of the wrong type.
    """
    declared = read_optional_json_object(folder / TOKENIZER_CONFIG)
    if "added_tokens_decoder" not in declared:
        declared = {**declared, **read_optional_json_object(folder / SPECIAL_TOKENS_MAP)}
    named = {name: value for name, value in declared.items() if name.endswith("_token")}
    for group in ("extra_special_tokens", "model_specific_special_tokens"):
        if isinstance(declared.get(group), dict):
            named |= declared[group]
    tokens = {name: _content(value) for name, value in named.items()}
    if wrong := [name for name in STANDARD_NAMES if named.get(name) is not None and tokens[name] is None]:
        raise ModelLoadError(
            f"{folder / TOKENIZER_CONFIG}: {wrong[0]} has the wrong type ({named[wrong[0]]!r}); "
            "fetch the file again."
        )
    defaults = _CLASS_DEFAULTS.get(str(declared.get("tokenizer_class")).removesuffix("Fast"), {})
    return {
        **{name: token for name, token in defaults.items() if name not in named},
        **{name: token for name, token in tokens.items() if token is not None},
    }


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _sources(folder: Path) -> dict[str, str]:
    """Return the sources by name. Template files, if there are any, replace those in the configuration."""
    files = {"default": folder / TEMPLATE} if (folder / TEMPLATE).is_file() else {}
    files |= {path.stem: path for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    try:
        if files:
            return {name: path.read_text(encoding="utf-8-sig") for name, path in files.items()}
        return _named(read_optional_json_object(folder / TOKENIZER_CONFIG).get("chat_template"))
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise ModelLoadError(
            f"{folder / TOKENIZER_CONFIG}: the chat template has the wrong type ({error}); "
            "fetch the file again."
        ) from error


def _named(source: Any) -> dict[str, str]:
    """Return templates by name: one text is the default, several are a list of named ones or an object."""
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}
    elif not isinstance(source, dict):
        source = {"default": source} if source else {}
    if not all(isinstance(text, str) for pair in source.items() for text in pair):
        raise TypeError("chat_template must be a text, or a list or object of named texts")
    return dict(source)
