"""What a chat template sees, against transformers' apply_chat_template on the same folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pagefleet.engine.loading.fingerprint import fingerprint_tokenizer
from pagefleet.engine.text.hf_tokenizer import HFTokenizer

SPECIAL = " ".join(
    f"{name}={{{{ {name}_token }}}}" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask", "image")
)
PLAIN = (
    SPECIAL + " {{ boi }}"
    "{% for m in messages %}[{{ m.role }}|{{ m.content }}|{{ m.thinking }}]{% endfor %}{{ tools }}"
)
MESSAGES = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
]
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "g", "parameters": {"type": "object"}}}
]
ADDED = {"content": "<b>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}

CASES: dict[str, dict[str, Any]] = {
    "a map alone": {
        "special_tokens_map.json": {
            "bos_token": ADDED,
            "eos_token": "<e>",
            "additional_special_tokens": ["<x>"],
        },
        "tokenizer_config.json": {"chat_template": PLAIN},
    },
    "a map goes before an older configuration": {
        "special_tokens_map.json": {"bos_token": "<b>", "image_token": "<x>"},
        "tokenizer_config.json": {"chat_template": PLAIN, "bos_token": "<e>", "eos_token": "<e>"},
    },
    "a map beside a newer configuration": {
        "special_tokens_map.json": {"bos_token": "<b>", "pad_token": "<x>"},
        "tokenizer_config.json": {
            "chat_template": PLAIN,
            "added_tokens_decoder": {"256": ADDED | {"special": True}},
            "eos_token": {"__type": "AddedToken", **ADDED, "content": "<e>"},
            "add_bos_token": True,
        },
    },
    "named extra tokens": {
        "tokenizer_config.json": {
            "chat_template": PLAIN,
            "image_token": "<x>",
            "extra_special_tokens": {"boi": "<e>", "unk_token": "<b>"},
        },
    },
    "extra tokens without names": {
        "tokenizer_config.json": {"chat_template": PLAIN, "extra_special_tokens": ["<x>"], "bos_token": None},
    },
    "the class's own": {
        "tokenizer_config.json": {
            "chat_template": PLAIN,
            "tokenizer_class": "Qwen2TokenizerFast",
            "unk_token": None,
        },
    },
    "named templates": {
        "tokenizer_config.json": {
            "chat_template": [
                {"name": "default", "template": PLAIN},
                {"name": "tool_use", "template": "for tools " + PLAIN},
                {"name": "rag", "template": "rag"},
            ],
            "bos_token": "<b>",
        },
    },
    "named templates as an object": {
        "tokenizer_config.json": {"chat_template": {"default": PLAIN, "tool_use": "for tools " + PLAIN}},
    },
    "template files replace the configuration's": {
        "tokenizer_config.json": {"chat_template": "old", "bos_token": "<b>"},
        "chat_template.jinja": PLAIN,
    },
    "a template file for tools": {
        "tokenizer_config.json": {"chat_template": "old", "bos_token": "<b>"},
        "chat_template.jinja": PLAIN,
        "additional_chat_templates/tool_use.jinja": "for tools " + PLAIN,
    },
}


def checkpoint(folder: Path, files: dict[str, Any]) -> Path:
    vocab = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = tokenizers.Tokenizer(models.BPE(vocab, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<b>", "<e>", "<x>", "<|endoftext|>"])
    library.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_template_sees_what_transformers_shows_it(case, tools, tmp_path, transformers):
    folder = checkpoint(tmp_path, CASES[case])
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    options = {"tools": tools, "add_generation_prompt": True}
    expected = reference.apply_chat_template(MESSAGES, **options)["input_ids"]
    tokenizer = HFTokenizer(folder)
    found = tokenizer.apply_chat_template(MESSAGES, tools)
    assert tokenizer.decode(found, skip_special_tokens=False) == reference.decode(expected)
    assert found == expected


def test_a_fingerprint_changes_with_each_file_that_changes_what_is_seen(tmp_path):
    files = CASES["a template file for tools"] | {"special_tokens_map.json": {"bos_token": "<b>"}}
    seen = {fingerprint_tokenizer(checkpoint(tmp_path, files))}
    for name in files:
        (tmp_path / name).write_text('{"bos_token": "<e>"}', encoding="utf-8")
        seen.add(fingerprint_tokenizer(tmp_path))
    assert len(seen) == 1 + len(files)
