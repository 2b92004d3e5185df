"""`add_bos_token` and `add_eos_token` of tokenizer_config.json beside what tokenizer.json itself adds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from pagefleet.engine.text.hf_tokenizer import HFTokenizer

BOS, EOS = 0, 1
ADDS_BOS = processors.TemplateProcessing(single="<b> $A", pair="<b> $A $B", special_tokens=[("<b>", BOS)])
BYTE_LEVEL = processors.ByteLevel(trim_offsets=False)
NAMED = {"bos_token": "<b>", "eos_token": "<e>"}
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


def folder_with(folder: Path, processor: Any, **config: Any) -> Path:
    words = ["<b>", "<e>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    library = tokenizers.Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<b>", "<e>"])
    if processor is not None:
        library.post_processor = processor
    library.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("processor", [None, BYTE_LEVEL], ids=["none", "byte level"])
@pytest.mark.parametrize(
    ("config", "before", "after"),
    [
        ({}, [], []),
        (NAMED, [], []),
        ({**NAMED, "add_bos_token": False, "add_eos_token": False}, [], []),
        ({**NAMED, "add_bos_token": True}, [BOS], []),
        ({**NAMED, "add_bos_token": True, "add_eos_token": True}, [BOS], [EOS]),
        ({**NAMED, "add_bos_token": None, "add_eos_token": True}, [], [EOS]),
        ({"add_bos_token": True, "bos_token": None}, [], []),
        ({"add_bos_token": True, "bos_token": "<not in the vocabulary>"}, [], []),
    ],
)
def test_the_configuration_counts_if_the_tokenizer_adds_nothing(tmp_path, processor, config, before, after):
    tokenizer = HFTokenizer(folder_with(tmp_path, processor, **config))
    plain = tokenizer.encode("hi", add_special_tokens=False)
    assert len(plain) == 2
    assert tokenizer.encode("hi") == [*before, *plain, *after]
    assert tokenizer.encode("x" * 5000)[: len(before) + 1] == [*before, plain[0] - ord("h") + ord("x")]


@pytest.mark.parametrize(
    "flags", [{}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}]
)
def test_what_the_tokenizer_adds_goes_first_as_in_transformers(tmp_path, transformers, flags):
    folder = folder_with(tmp_path, ADDS_BOS, **NAMED, **flags)
    tokenizer, reference = HFTokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("hi") == reference("hi")["input_ids"]
    assert tokenizer.encode("hi")[0] == BOS


@pytest.mark.parametrize("processor", [None, ADDS_BOS], ids=["none", "bos"])
def test_a_chat_has_one_bos(tmp_path, processor):
    """The template writes it: nothing is added to a rendered conversation."""
    tokenizer = HFTokenizer(folder_with(tmp_path, processor, **NAMED, add_bos_token=True))
    token_ids = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert token_ids == tokenizer.encode("hi")
    assert token_ids.count(BOS) == 1
