"""Checkpoints that have a tokenizer.model alone, against sentencepiece itself and transformers' slow rules.

These are: added tokens are cut out of a text first, and each part between them is one text to sentencepiece.
"""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.loading.tokenizer_folder import tokenizer_folder
from pagefleet.engine.text.hf_tokenizer import HFTokenizer

CORPUS = [
    line
    for page in ("gateway.md", "python.md", "streaming.md")
    for line in (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8").splitlines()
    if line.strip()
] + ["Grüße, 世界! नमस्ते мир 你好 ação"] * 20
LETTERS = "abcdefghij ABC  \n\t.,;0123äöüß世界नमди👩🚀\u3000▁é"

STYLES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False},
    "mistral": {
        "model_type": "bpe",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "control_symbols": ["[INST]", "[/INST]"],
        "user_defined_symbols": ["[TOOL_CALLS]", "▁▁"],
    },
    "gemma": {
        "model_type": "bpe",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["▁▁", "▁▁▁", "\n", "\n\n", "<start_of_turn>"],
        "bos_id": 2,
        "eos_id": 1,
        "unk_id": 3,
        "pad_id": 0,
        "bos_piece": "<bos>",
        "eos_piece": "<eos>",
    },
    "bpe without bytes": {"model_type": "bpe", "remove_extra_whitespaces": True},
    "unigram": {"model_type": "unigram", "byte_fallback": True, "user_defined_symbols": ["<mark>"]},
    "unigram without bytes": {"model_type": "unigram", "remove_extra_whitespaces": False},
    "normalized": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc"},
}


def trained(**options: Any) -> bytes:
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=writer,
        num_threads=1,
        minloglevel=2,
        hard_vocab_limit=False,
        **{"vocab_size": 600, "normalization_rule_name": "identity", **options},
    )
    return writer.getvalue()


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    return {style: trained(**options) for style, options in STYLES.items()}


def texts(seed: int, num_texts: int) -> Iterator[str]:
    chance = random.Random(seed)
    yield from (
        "<mark>a<mark> <mar",
        "",
        " ",
        "a",
        " a",
        "a ",
        "▁",
        "▁a",
        "\n",
        "  \n\n   b",
        "x\u0000y",
        "a" * 5000,
    )
    for _ in range(num_texts):
        line = chance.choice(CORPUS)
        yield "".join(chance.choices(LETTERS, k=chance.randrange(30)))
        yield line[chance.randrange(len(line)) :] + chance.choice(("", " ", "\n", "  "))


def loaded(folder: Path, model: bytes, **config: Any) -> HFTokenizer:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return HFTokenizer(tokenizer_folder(folder, folder / "cache"))


def processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.mark.parametrize("style", STYLES)
def test_tokens_and_texts_equal_those_of_sentencepiece(models, tmp_path, style):
    tokenizer, expected = loaded(tmp_path, models[style]), processor(models[style])
    assert tokenizer.vocab_size == expected.vocab_size()
    for text in texts(1, 150):
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        assert token_ids == expected.encode(text), text
        if expected.unk_id() in token_ids:
            continue
        decoder = tokenizer.decoder()
        said = "".join(map(decoder.step, token_ids)) + decoder.flush()
        if text.startswith("▁") and STYLES[style].get("remove_extra_whitespaces", True):
            # sentencepiece takes all spaces off the start of such a text, and not just the prefix.
            said = said.lstrip(" ")
        assert said == expected.decode(token_ids), text


@pytest.mark.parametrize("file", ["tokenizer.model.v1", "mistral_instruct_tokenizer_241114.model.v7"])
def test_mistrals_own_models_give_its_own_tokens(tmp_path, file):
    mistral = pytest.importorskip("mistral_common", reason="pip install '.[mistral]'")
    model = (Path(mistral.__file__).parent / "data" / file).read_bytes()
    tokenizer, expected = loaded(tmp_path, model), processor(model)
    for text in texts(2, 100):
        token_ids = tokenizer.encode(text)
        assert token_ids == [expected.bos_id(), *expected.encode(text)], text
        assert tokenizer.decode(token_ids) == expected.decode(token_ids)


def without_prefix(model: bytes) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.normalizer_spec.add_dummy_prefix = False
    return proto.SerializeToString()


def in_parts(text: str, added: dict[str, int], model: sentencepiece.SentencePieceProcessor) -> list[int]:
    pattern = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
    return [
        token_id
        for part in re.split(f"({pattern})", text)
        for token_id in ([added[part]] if part in added else model.encode(part))
    ]


@pytest.mark.parametrize("style", ["llama", "mistral", "gemma", "unigram"])
def test_added_tokens_cut_a_text_into_parts(tmp_path, style):
    """Each part has a prefix of its own. One token renames a piece, two follow the vocabulary with a gap."""
    control = [*STYLES[style].get("control_symbols", ()), "<unused>"]
    model = trained(**{**STYLES[style], "control_symbols": control})
    expected = processor(model)
    size, renamed = expected.vocab_size(), expected.piece_to_id("<unused>")
    config = {
        "added_tokens_decoder": {
            str(renamed): {"content": "<|user|>", "special": True},
            str(size): {"content": "<think>", "special": False},
            str(size + 2): {"content": "<|end|>", "special": True, "rstrip": True},
        }
    }
    tokenizer = loaded(tmp_path, model, **config)
    control = {expected.id_to_piece(each): each for each in range(size) if expected.is_control(each)}
    del control["<unused>"]
    added = {**control, "<|user|>": renamed, "<think>": size, "<|end|>": size + 2}
    chance = random.Random(3)
    parts = list(texts(4, 20))
    for _ in range(60):
        text = "".join(chance.choice([*added, *parts]) for _ in range(6))
        without = re.sub(r"<\|end\|>\s+", "<|end|>", text)
        assert tokenizer.encode(text, add_special_tokens=False) == in_parts(without, added, expected), text
    assert tokenizer.vocab_size == size + 3
    said = tokenizer.encode("<|user|><think>", add_special_tokens=False)
    assert (tokenizer.decode(said), tokenizer.is_added(size)) == ("<think>", True)


def test_older_files_name_added_tokens_too(models, tmp_path):
    size = processor(models["llama"]).vocab_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|pad|>": size, "<tool>": size + 1}))
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<|pad|>", "eos_token": "<tool>"}')
    tokenizer = loaded(tmp_path, models["llama"])
    assert tokenizer.encode("<|pad|><tool>", add_special_tokens=False) == [size, size + 1]
    assert tokenizer.decode([size, size + 1]) == "", "both are special tokens"
    assert list(tokenizer.end_token_ids) == [size + 1]


@pytest.mark.parametrize(
    ("style", "config", "before", "after"),
    [
        ("llama", {}, "<s>", None),
        ("gemma", {}, "<bos>", None),
        ("llama", {"add_bos_token": False}, None, None),
        ("llama", {"add_eos_token": True, "tokenizer_class": "LlamaTokenizer"}, "<s>", "</s>"),
        ("gemma", {"add_eos_token": True, "tokenizer_class": "GemmaTokenizerFast"}, "<bos>", "<eos>"),
        ("llama", {"tokenizer_class": "GPTSw3Tokenizer"}, None, None),
        ("llama", {"tokenizer_class": "GPTSw3Tokenizer", "add_bos_token": True}, "<s>", None),
        ("llama", {"bos_token": None}, None, None),
        ("llama", {"bos_token": {"content": "</s>"}}, "</s>", None),
    ],
)
def test_bos_and_eos_stand_around_a_text_but_not_around_a_chat(
    models, tmp_path, style, config, before, after
):
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    tokenizer = loaded(tmp_path, models[style], **config, chat_template=template)
    expected = processor(models[style])
    ids = [each and expected.piece_to_id(each) for each in (before, after)]
    found = tokenizer.encode("gateway")
    assert found == [each for each in (ids[0], *expected.encode("gateway"), ids[1]) if each is not None]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "gateway"}])
    assert chat.count(expected.bos_id()) == (config.get("bos_token", "<s>") in ("<s>", "<bos>"))
    assert chat[-1] == expected.eos_id()


def test_the_prefix_can_be_limited_to_the_start_of_a_text(models, tmp_path):
    """`legacy: false`: a part after an added token has no prefix."""
    expected = processor(models["llama"])
    inner = processor(without_prefix(models["llama"]))
    tokenizer = loaded(tmp_path / "first", models["llama"], legacy=False)
    found = tokenizer.encode("job<s>job</s> job", add_special_tokens=False)
    parts = [expected.encode("job"), [1], inner.encode("job"), [2], inner.encode(" job")]
    assert found == [each for part in parts for each in part]
    tokenizer = loaded(tmp_path / "none", models["llama"], add_prefix_space=False)
    assert tokenizer.encode("job", add_special_tokens=False) == inner.encode("job")
    assert tokenizer.decode(inner.encode(" job")) == " job"


def test_templates_and_changes_of_files_reach_the_conversion(models, tmp_path):
    first = loaded(tmp_path, models["llama"], chat_template="old")
    (tmp_path / "chat_template.jinja").write_text("new {{ bos_token }}{{ messages[0].content }}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    second = HFTokenizer(tokenizer_folder(tmp_path, tmp_path / "cache"))
    assert (first.chat_template, second.chat_template) == ("old", "with tools")
    said = second.apply_chat_template([{"role": "user", "content": "job"}])
    assert second.decode(said, skip_special_tokens=False) == "new <s> job"
    assert tokenizer_folder(tmp_path, tmp_path / "cache") == second._path.parent, "converted once"


def test_a_grammar_can_be_enforced_on_the_vocabulary(models, tmp_path):
    for style in ("llama", "gemma", "unigram"):
        tokenizer = loaded(tmp_path / style.split()[0], models[style])
        grammars = tokenizer.for_grammars(tokenizer.vocab_size + 8, [2])
        for token_id in range(3, tokenizer.vocab_size):
            # llguidance marks special tokens with the byte 0xFF, which no text has.
            if not tokenizer.is_added(token_id) and tokenizer.token_bytes(token_id) != b"\xff":
                assert grammars.decode_bytes([token_id]) == tokenizer.token_bytes(token_id), style


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda model: model[: len(model) // 2], "is not a"),
        (lambda model: b"", "is not a whole SentencePiece model"),
        (lambda model: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is not a"),
        (lambda model: trained(model_type="char"), "is a .* of the type 'char'"),
        (lambda model: trained(model_type="bpe", treat_whitespace_as_suffix=True), "marks spaces in a way"),
    ],
)
def test_a_file_that_cannot_be_converted_is_named(models, tmp_path, change, sentence):
    with pytest.raises(ModelLoadError, match=rf"tokenizer\.model {sentence}"):
        loaded(tmp_path, change(models["llama"]))
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("decoder", "sentence"),
    [
        ({"5": {"content": "</s>"}}, "'</s>' has the id 2, but the vocabulary has it as id 5"),
        ({"x": {"content": "<x>"}}, "the added tokens have the wrong form"),
        ({"700": {}}, "the added tokens have the wrong form"),
        (["<x>"], "the added tokens have the wrong form"),
    ],
)
def test_an_added_token_with_a_wrong_id_or_form_is_refused(models, tmp_path, decoder, sentence):
    with pytest.raises(ModelLoadError, match=sentence):
        loaded(tmp_path, models["llama"], added_tokens_decoder=decoder)


@pytest.mark.parametrize("missing", ["sentencepiece", "google.protobuf"])
def test_a_missing_package_is_named_with_the_command(models, tmp_path, missing):
    """In a process that cannot import it."""
    (tmp_path / "tokenizer.model").write_bytes(models["llama"])
    script = f"""
import sys
from pathlib import Path
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocker())
from pagefleet.engine.errors import MissingDependencyError
from pagefleet.engine.loading.tokenizer_folder import tokenizer_folder
try:
    tokenizer_folder(Path({str(tmp_path)!r}), Path({str(tmp_path / "cache")!r}))
except MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    package = missing.removeprefix("google.")
    sentence = rf"The package {package} is not installed: run `pip install '{package}[<>=].*'`\."
    assert re.fullmatch(sentence, done.stdout.strip()), done.stdout + done.stderr
