"""Converts the tokenizer of a GGUF file to the files that `HFTokenizer` reads.

The conversion in transformers is not used: it knows only some pre-tokenizers, replaces the others with
GPT-2's, and ignores the flags for spaces, so the tokens would differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.gguf.pre_tokenizers import PreTokenizer, pre_tokenizer
from pagefleet.engine.files.vocabularies.sentencepiece import (
    BLANK,
    Piece,
    PieceType,
    SentencePieceModel,
    build_sentencepiece,
)

__all__ = ["check_gguf_tokenizer", "write_gguf_tokenizer"]

_SPECIAL_TOKENS: Final = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
"""The names in transformers and in GGUF (which spells `seperator`)."""


def check_gguf_tokenizer(scalars: Mapping[str, Any]) -> None:
    """Raise ModelLoadError if `write_gguf_tokenizer` cannot convert this tokenizer exactly."""
    kind = scalars.get("tokenizer.ggml.model")
    if kind == "gpt2":
        pre_tokenizer(scalars.get("tokenizer.ggml.pre"))
    elif kind != "llama":
        raise ModelLoadError(
            f"The tokenizer model {kind!r} (tokenizer.ggml.model) is not supported, only gpt2 and llama; "
            "use the "
            "model's safetensors checkpoint."
        )
    if scalars.get("tokenizer.ggml.remove_extra_whitespaces"):
        raise ModelLoadError(
            "Removing extra white space (tokenizer.ggml.remove_extra_whitespaces) is not supported; use the "
            "model's safetensors checkpoint."
        )


def write_gguf_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`.

    Args:
        metadata: the file's keys and values, including arrays.

    Raises ModelLoadError.
    """
    check_gguf_tokenizer(metadata)
    ggml = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    tokens: list[str] = ggml["tokens"]
    if ggml["model"] == "gpt2":
        family = pre_tokenizer(ggml["pre"])
        tokenizer, adds_bos = _byte_level(ggml, family), family.adds_bos
    else:
        tokenizer, adds_bos = _sentencepiece(ggml), True
    _add_tokens(tokenizer, ggml)
    named = {
        name: tokens[ggml[key]]
        for name, key in _SPECIAL_TOKENS.items()
        if 0 <= ggml.get(key, -1) < len(tokens)
    }
    before = [named["bos_token"]] if ggml.get("add_bos_token", adds_bos) and "bos_token" in named else []
    after = [named["eos_token"]] if ggml.get("add_eos_token") and "eos_token" in named else []
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, "$B"],
            special_tokens=[(token, tokens.index(token)) for token in dict.fromkeys([*before, *after])],
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    if templates := _chat_templates(metadata):
        config["chat_template"] = templates
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _byte_level(ggml: Mapping[str, Any], family: PreTokenizer) -> Tokenizer:
    """Return a byte-level BPE tokenizer with the merges of the file."""
    vocab = {token: token_id for token_id, token in enumerate(ggml["tokens"])}
    # The first part of a merge may begin with a space; neither contains one inside.
    merges = [(merge[:at], merge[at + 1 :]) for merge in ggml["merges"] if (at := merge.find(" ", 1)) > 0]
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=family.ignores_merges))
    if (normalizer := family.normalizer()) is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = family.build(add_prefix_space=bool(ggml.get("add_space_prefix")))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(ggml: Mapping[str, Any]) -> Tokenizer:
    tokens: list[str] = ggml["tokens"]
    types = ggml.get("token_type") or [PieceType.NORMAL] * len(tokens)
    model = SentencePieceModel(
        pieces=[Piece(*each) for each in zip(tokens, ggml["scores"], types, strict=True)],
        unknown_id=ggml.get("unknown_token_id", 0),
        has_prefix=ggml.get("add_space_prefix", True),
        whole=_runs_of_blanks(ggml),
    )
    return build_sentencepiece(model)


def _runs_of_blanks(ggml: Mapping[str, Any]) -> list[str]:
    """Return the user-defined pieces that cannot be added tokens: these are matched in the text, which has
    spaces instead of blanks."""
    if ggml["model"] != "llama":
        return []
    types = zip(ggml["tokens"], ggml.get("token_type") or (), strict=False)
    return [token for token, kind in types if kind == PieceType.USER_DEFINED and BLANK in token]


def _add_tokens(tokenizer: Tokenizer, ggml: Mapping[str, Any]) -> None:
    """Add the tokens that are matched in a text before BPE: special and user-defined ones."""
    types = list(zip(ggml["tokens"], ggml.get("token_type") or (), strict=False))
    special = [token for token, kind in types if kind in (PieceType.CONTROL, PieceType.UNKNOWN)]
    blanks = set(_runs_of_blanks(ggml))
    added = [token for token, kind in types if kind == PieceType.USER_DEFINED and token not in blanks]
    tokenizer.add_special_tokens([AddedToken(each, normalized=False, special=True) for each in special])
    tokenizer.add_tokens([AddedToken(each, normalized=False, special=False) for each in added])


def _chat_templates(metadata: Mapping[str, Any]) -> list[dict[str, str]]:
    prefix = "tokenizer.chat_template"
    found = {"default": metadata[prefix]} if prefix in metadata else {}
    found |= {
        key.removeprefix(f"{prefix}."): value
        for key, value in metadata.items()
        if key.startswith(f"{prefix}.") and isinstance(value, str)
    }
    return [{"name": name, "template": template} for name, template in found.items()]
