"""Checkpoints with a tekken.json or a tiktoken file alone, against mistral-common and tiktoken."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pagefleet.api.chat.chat_template import tool_parser_of
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.loading.tokenizer_folder import tokenizer_folder
from pagefleet.engine.text.hf_tokenizer import HFTokenizer

mistral_common = pytest.importorskip("mistral_common", reason="pip install '.[mistral]'")
tiktoken = pytest.importorskip("tiktoken")
TEKKEN = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"

NUM_PIECES, NUM_SPECIAL = 3000, 100
SCRIPTS = [
    *((0x20, 0x500), (0x5D0, 0x5F0), (0x620, 0x650), (0x900, 0x980), (0xE00, 0xE60), (0x1F00, 0x2000)),
    *((0x2000, 0x2070), (0x3040, 0x3100), (0x4E00, 0x4E80), (0xAC00, 0xAC80), (0x1F300, 0x1F400)),
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city, in °C.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Köln"}'},
}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is 2+2?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  Grüße 👋\n"},
        {"role": "assistant", "content": "Hallo!"},
        {"role": "user", "content": "And in French?"},
    ],
    [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "21"},
    ],
]


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """The real file, cut down to its first pieces. No merges lead to the last one."""
    content: dict[str, Any] = json.loads(TEKKEN.read_text(encoding="utf-8"))
    content["vocab"] = content["vocab"][: NUM_PIECES + 50]
    content["vocab"][NUM_PIECES - 1]["token_bytes"] = base64.b64encode(b" qzjqzj").decode()
    content["config"] |= {
        "default_vocab_size": NUM_PIECES + NUM_SPECIAL,
        "default_num_special_tokens": NUM_SPECIAL,
    }
    return content


@pytest.fixture(scope="module")
def folder(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tekken")
    (folder / "tekken.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> HFTokenizer:
    return loaded(folder)


def loaded(folder: Path) -> HFTokenizer:
    return HFTokenizer(tokenizer_folder(folder, folder / "cache"))


def mistral(path: Path) -> Any:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    return MistralTokenizer.from_file(str(path))


def texts(num_texts: int) -> Iterator[str]:
    chance = random.Random(5)
    letters = [chr(code) for first, end in SCRIPTS for code in range(first, end)]
    yield from (
        "a qzjqzj b",
        "",
        " ",
        "\n \r\n\t x",
        "I'M 12345 cafés,あ世 ²{a}HTMLParser\r\n\n   x (!",
        "x\u0000y" * 400,
    )
    for _ in range(num_texts):
        yield "".join(chance.choices(letters, k=chance.randrange(30)))
        yield "".join(chance.choices("aAbB 'sS\n\r/.é1 ", k=chance.randrange(30)))


def check(tokenizer: HFTokenizer, path: Path, num_texts: int) -> None:
    expected = mistral(path).instruct_tokenizer.tokenizer
    assert tokenizer.vocab_size == expected.n_words
    for text in texts(num_texts):
        token_ids = tokenizer.encode(text)
        assert token_ids == expected.encode(text, bos=True, eos=False), text
        decoder = tokenizer.decoder()
        assert "".join(map(decoder.step, token_ids)) + decoder.flush() == text
    for token_id in range(0, expected.n_words, 7):
        if expected.is_special(token_id):
            assert tokenizer.token_name(token_id) == expected.id_to_piece(token_id)
        else:
            assert tokenizer.token_bytes(token_id) == expected.id_to_byte_piece(token_id)


def test_tokens_equal_those_of_mistral_common(tokenizer, folder):
    check(tokenizer, folder / "tekken.json", 600)


@pytest.mark.slow
def test_the_real_vocabulary_gives_its_tokens(tmp_path):
    shutil.copy(TEKKEN, tmp_path / "tekken.json")
    check(loaded(tmp_path), tmp_path / "tekken.json", 2000)


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_conversation_has_the_tokens_of_mistral_common(tokenizer, folder, messages, tools):
    """Its template is generated from the version of the file; special tokens of the template are ids."""
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    request = ChatCompletionRequest.from_openai(messages=messages, tools=tools)
    expected = mistral(folder / "tekken.json").encode_chat_completion(request).tokens
    found = tokenizer.apply_chat_template(messages, tools)
    assert tokenizer.decode(found, False) == tokenizer.decode(expected, False)
    assert found == expected
    assert tool_parser_of(tokenizer.chat_template) == "mistral"
    assert set(tokenizer.end_token_ids) == {2}


def test_a_template_of_the_checkpoint_goes_first(content, tmp_path):
    (tmp_path / "tekken.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    tokenizer = loaded(tmp_path)
    assert tokenizer.chat_template == "{{ bos_token }}{{ messages[0].content }}"
    plain = tokenizer.encode("hi")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]) == [1, *plain]


def test_tokens_that_the_file_names_are_special(content, tmp_path):
    """Files since version 11 list their special tokens."""
    named = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[MODEL_SETTINGS]"]
    listed = [{"rank": rank, "token_str": each, "is_control": True} for rank, each in enumerate(named)]
    changed = {**content, "special_tokens": listed, "config": {**content["config"], "version": "v11"}}
    del changed["image"]
    (tmp_path / "tekken.json").write_text(json.dumps(changed), encoding="utf-8")
    tokenizer = loaded(tmp_path)
    assert tokenizer.encode("[/INST]a<SPECIAL_6>", add_special_tokens=False)[::2] == [4, 6]
    assert tokenizer.decode([1, 4, 6, *tokenizer.encode("a")]) == "a"


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("vocab"),
        lambda content: content["config"].update(version="v99"),
        lambda content: content["config"].update(default_vocab_size=10**6),
        lambda content: content["vocab"][300].update(rank=7),
    ],
)
def test_a_damaged_file_is_named(content, tmp_path, change):
    changed = json.loads(json.dumps(content))
    change(changed)
    (tmp_path / "tekken.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"tekken\.json cannot be read as a tekken tokenizer \("):
        loaded(tmp_path)


def test_without_mistral_common_the_command_is_named(folder, tmp_path):
    script = f"""
import sys
from pathlib import Path
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "mistral_common":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
from pagefleet.engine.errors import MissingDependencyError
from pagefleet.engine.loading.tokenizer_folder import tokenizer_folder
try:
    tokenizer_folder(Path({str(folder)!r}), Path({str(tmp_path)!r}))
except MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    sentence = "The package mistral-common is not installed: run `pip install 'mistral-common<2,>=1.13'`."
    assert done.stdout.strip() == sentence, done.stderr


def tiktoken_file(path: Path, num_pieces: int) -> None:
    """All bytes, all pairs of bytes, and some of three: in the ranks of a random order."""
    pairs = [bytes([first, second]) for first in range(256) for second in range(256)]
    random.Random(8).shuffle(pairs)
    longer = [pair + bytes([last]) for pair in pairs for last in b"e "]
    pieces = [*(bytes([byte]) for byte in range(256)), *pairs, *longer][:num_pieces]
    lines = [b"%s %d\n" % (base64.b64encode(piece), rank) for rank, piece in enumerate(pieces)]
    path.write_bytes(b"".join(lines))


@pytest.mark.slow
def test_llama_3s_own_file_gives_the_tokens_of_tiktoken(tmp_path):
    """Its vocabulary is not in any package that the tests install; the pieces here are made up."""
    from pagefleet.engine.files.vocabularies import tiktoken_file as reader

    tiktoken_file(tmp_path / "tokenizer.model", 128_000)
    tokenizer = loaded(tmp_path)
    pieces = {tokenizer.token_bytes(token_id): token_id for token_id in range(128_000)}
    expected = tiktoken.Encoding(
        "made-up", pat_str=reader._PATTERN, mergeable_ranks=pieces, special_tokens={"<|eot_id|>": 128_009}
    )
    for text in [*texts(300), "a<|eot_id|> b"]:
        assert tokenizer.encode(text)[1:] == expected.encode(text, allowed_special="all"), text
    names = [tokenizer.token_name(128_000 + each) for each in (0, 1, 2, 5, 9, 11, 255)]
    reserved = [f"<|reserved_special_token_{each}|>" for each in (0, 2, 3, 247)]
    assert names == [
        *("<|begin_of_text|>", "<|end_of_text|>", reserved[0], reserved[1], "<|eot_id|>"),
        *reserved[2:],
    ]
    assert tokenizer.encode("")[0] == 128_000


def test_a_tiktoken_file_without_a_known_pattern_is_refused(tmp_path):
    tiktoken_file(tmp_path / "tokenizer.model", 1000)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.model is a tiktoken vocabulary of 1000 pieces"):
        loaded(tmp_path)
    with (tmp_path / "tokenizer.model").open("ab") as file:
        file.write(b"IQ==\n")
    with pytest.raises(ModelLoadError, match="is not a tiktoken vocabulary"):
        loaded(tmp_path)
