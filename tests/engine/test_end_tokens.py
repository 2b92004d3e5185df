"""Which tokens end an answer: each file of a checkpoint may name some, and none may hide another's."""

from __future__ import annotations

import json
import shutil
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


def tokenizer(folder: Path, template: str | None = None, **config: Any) -> HFTokenizer:
    """The words of the vocabulary have the ids from 6 on; "!" is 6."""
    words = [*ADDED, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    library = tokenizers.Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(list(ADDED))
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
    found = end_token_ids(generation, {"vocab_size": 262, **config}, read)
    assert set(found) == expected
    assert len(found) == len(expected)


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
