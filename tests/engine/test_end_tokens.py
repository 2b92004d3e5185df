"""Which tokens end an answer: each file of a checkpoint may name some, and none may hide another's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pagefleet.engine.config import EngineConfig
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.loading import loader
from pagefleet.engine.text.end_tokens import end_token_ids
from pagefleet.engine.text.hf_tokenizer import HFTokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
HARMONY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}{{ m.content }}</s>"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
REFUSING = "{{ raise_exception('system message needed') }}" + CHATML
ADDED = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|pad|>")
START, END, PAD = 3, 4, 5


def tokenizer(
    folder: Path, template: str | None = None, added: Sequence[str] = ADDED, **config: Any
) -> HFTokenizer:
    """The words of the vocabulary, 97 with those of `added`, which come first."""
    words = [*added, *map(chr, range(0x21, 0x7B))][:97]
    library = tokenizers.Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(list(added))
    library.save(str(folder / "tokenizer.json"))
    content = config | ({"chat_template": template} if template is not None else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    return HFTokenizer(folder)


@pytest.mark.parametrize(
    ("generation", "config", "template", "eos_token", "expected"),
    [
        # A ChatML fine-tune whose config.json is its base model's.
        ({}, {"eos_token_id": 2}, CHATML, "</s>", {2, END}),
        ({}, {"eos_token_id": 2}, None, "<|im_end|>", {2, END}),
        ({"eos_token_id": [2]}, {}, CHATML, None, {2, END}),
        # Null is no opinion.
        ({"eos_token_id": None}, {"eos_token_id": 2}, None, None, {2}),
        ({"eos_token_id": None}, {"eos_token_id": None}, None, "</s>", {2}),
        ({"eos_token_id": None}, {}, None, None, set()),
        # What ends nothing is not added: pad tokens, starts of turns, ends of a user's turn.
        ({}, {"eos_token_id": 2, "pad_token_id": PAD}, NO_END, "</s>", {2}),
        ({"eos_token_id": 2}, {}, HARMONY, None, {2}),
        ({"eos_token_id": 2}, {}, REFUSING, None, {2}),
        # A config.json of another vocabulary: 6 is "!" here, 151645 is nothing.
        ({"eos_token_id": END}, {"eos_token_id": 6}, None, None, {END}),
        ({}, {"eos_token_id": [2, 151645, -1]}, None, None, {2}),
        ({}, {"eos_token_id": 6}, None, None, {6}),
    ],
)
def test_what_ends_an_answer_is_what_all_files_name(
    tmp_path, generation, config, template, eos_token, expected
):
    read = tokenizer(tmp_path, template, eos_token=eos_token)
    found = end_token_ids(generation, {"vocab_size": 97, **config}, read)
    assert set(found) == expected
    assert len(found) == len(expected)


# What the files of each family name, and the form of its template's turns.
LLAMA3 = "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}\n\n{{ m.content }}<|eot_id|>"
GEMMA = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n"
PHI3 = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n"
GPT_OSS = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m.content }}{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}"
)
GLM4 = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
FAMILIES: dict[str, tuple[str, str, str | None, list[str], list[str]]] = {
    "llama 3.1 instruct": (
        *("<|end_of_text|> <|eom_id|> <|eot_id|>", "<|end_of_text|> <|eom_id|> <|eot_id|>", LLAMA3),
        *(["<|eot_id|>"], ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]),
    ),
    "a fine-tune of llama 3 without generation_config.json": (
        *("", "<|end_of_text|>", LLAMA3, ["<|end_of_text|>"], ["<|end_of_text|>", "<|eot_id|>"]),
    ),
    "gemma 2": ("<eos>", "<eos>", GEMMA, ["<eos>"], ["<eos>", "<end_of_turn>"]),
    "gemma 3": ("<eos> <end_of_turn>", "<eos>", GEMMA, ["<eos>"], ["<eos>", "<end_of_turn>"]),
    "phi 3": (
        *("<|endoftext|> <|assistant|> <|end|>", "<|endoftext|>", PHI3, ["<|endoftext|>"]),
        ["<|endoftext|>", "<|assistant|>", "<|end|>"],
    ),
    "gpt-oss": (
        *("<|return|> <|endoftext|> <|call|>", "<|return|>", GPT_OSS, ["<|return|>"]),
        ["<|return|>", "<|endoftext|>", "<|call|>"],
    ),
    "glm 4": (
        *("<|endoftext|> <|user|> <|observation|>", "<|endoftext|> <|user|> <|observation|>", GLM4),
        *(["<|endoftext|>"], ["<|endoftext|>", "<|user|>", "<|observation|>"]),
    ),
    "qwen 3": (
        "<|im_end|> <|endoftext|>",
        "<|im_end|>",
        CHATML,
        ["<|im_end|>"],
        ["<|im_end|>", "<|endoftext|>"],
    ),
}
SPECIAL = (
    *("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|start_header_id|>", "<eos>", "<start_of_turn>"),
    *("<end_of_turn>", "<|endoftext|>", "<|assistant|>", "<|user|>", "<|system|>", "<|end|>", "<|start|>"),
    *(
        "<|channel|>",
        "<|message|>",
        "<|return|>",
        "<|call|>",
        "<|observation|>",
        "<|im_start|>",
        "<|im_end|>",
    ),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_with_several_ends_keep_all_of_them(tmp_path, family):
    generation, config, template, eos_token, expected = FAMILIES[family]
    template = template if template is CHATML else f"{template}{{% endfor %}}"
    read = tokenizer(tmp_path, template, SPECIAL, eos_token=eos_token[0])
    ends = [[SPECIAL.index(each) for each in names.split()] for names in (generation, config)]
    one = ends[1][0] if len(ends[1]) == 1 else ends[1]
    found = end_token_ids({"eos_token_id": ends[0]} if ends[0] else {}, {"eos_token_id": one}, read)
    assert {SPECIAL[each] for each in found} == set(expected)


@pytest.mark.parametrize("value", ["2", [True], 1.0, {"id": 2}])
def test_an_end_that_is_no_token_id_is_refused(tmp_path, value):
    with pytest.raises(ModelLoadError, match=r"config\.json: eos_token_id must be a token id"):
        end_token_ids({}, {"eos_token_id": value}, tokenizer(tmp_path))


def test_a_model_is_loaded_with_all_of_them(tiny_checkpoints, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_checkpoints["llama"], folder)
    tokenizer(folder, CHATML)
    (folder / "generation_config.json").write_text('{"eos_token_id": null}', encoding="utf-8")
    info = loader.load(EngineConfig(model=str(folder), num_blocks=4)).info
    assert set(info.eos_token_ids) == {2, END}, "config.json says 2, the chat template <|im_end|>"
