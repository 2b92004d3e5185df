"""A chat template from a file of the user's (`chat_template`), in the place of the checkpoint's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pagefleet.engine.config import EngineConfig
from pagefleet.engine.errors import ConfigError, InvalidRequestError
from pagefleet.engine.llm import LLM
from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.text.chat_template import read_template_file
from pagefleet.engine.text.hf_tokenizer import HFTokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
MESSAGES = [{"role": "user", "content": "hi"}]
LETTERS = ["<s>", "</s>", *map(chr, range(0x21, 0x7F))]


@pytest.fixture
def folder(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A tiny model with a tokenizer of letters, with or without templates of its own."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_checkpoints["llama"], folder)
    library = tokenizers.Tokenizer(models.BPE({letter: index for index, letter in enumerate(LETTERS)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>"])
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    return folder


def file_with(folder: Path, source: str) -> Path:
    path = folder.parent / "mine.jinja"
    path.write_text(source, encoding="utf-8")
    return path


def test_a_model_without_a_template_completes_and_names_the_option(folder):
    llm = LLM(str(folder), num_blocks=8)
    params = SamplingParams(max_tokens=2)
    assert llm.generate("hi", params)[0].token_ids
    with pytest.raises(InvalidRequestError, match=r"`--chat-template FILE` \(in Python: `LLM\(model, chat_t"):
        llm.chat(MESSAGES, params)
    llm.close()
    given = LLM(str(folder), num_blocks=8, chat_template=str(file_with(folder, TEMPLATE)))
    said = given.chat(MESSAGES, params)[0]
    assert [LETTERS[each] for each in said.prompt_token_ids] == ["<s>", "[", "h", "i", "]"]
    assert given.engine.info.fingerprint.tokenizer != llm.engine.info.fingerprint.tokenizer
    given.close()


def test_it_replaces_all_templates_of_the_checkpoint(folder):
    named = [{"name": "default", "template": "old"}, {"name": "tool_use", "template": "old"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named, "bos_token": "<s>"}))
    tokenizer = HFTokenizer(folder, TEMPLATE)
    for tools in (None, [{"type": "function"}]):
        found = tokenizer.apply_chat_template(MESSAGES, tools)
        assert tokenizer.decode(found, skip_special_tokens=False) == "<s>[hi]"
    assert tokenizer.chat_template == TEMPLATE


def test_the_token_that_closes_its_answers_ends_them(folder):
    closing = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    assert list(HFTokenizer(folder, closing).end_token_ids) == [1]
    assert list(HFTokenizer(folder, TEMPLATE).end_token_ids) == []


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{% for m in messages %}\n{{ m.content }\n{% endfor %}", r"\(line 2: unexpected '}'\); correct it"),
        ("{% for m in messages %}\n\n{% if m %}", r"\(line 3: .*'if'"),
        ("a\n{{ messages | no_filter }}", r"\(line 2: No filter named 'no_filter'"),
    ],
)
def test_a_template_with_an_error_is_refused_with_its_line(folder, source, sentence):
    path = file_with(folder, source)
    with pytest.raises(ConfigError, match=rf"^chat_template: .*mine\.jinja is not a valid .*{sentence}"):
        LLM(str(folder), chat_template=path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.jinja cannot be read \(No such file"):
        read_template_file(tmp_path / "none.jinja")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory"):
        read_template_file(tmp_path)
    (tmp_path / "latin.jinja").write_bytes("größe".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.jinja is not UTF-8 text"):
        read_template_file(tmp_path / "latin.jinja")


def test_the_blocks_and_filters_of_hugging_face_are_known(tmp_path):
    source = (
        "{% generation %}{{ messages | tojson }}{% endgeneration %}{% for m in [] %}{% break %}{% endfor %}."
    )
    path = tmp_path / "hf.jinja"
    path.write_text("\ufeff" + source, encoding="utf-8")
    assert read_template_file(path) == source


def test_the_null_backend_has_no_use_for_it():
    with pytest.raises(ConfigError, match="chat_template has no effect on the null backend"):
        EngineConfig(model="null", backend="null", chat_template="x.jinja")
