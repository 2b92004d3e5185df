"""The tokenizer of a GGUF file: the demo model's against its own numbers, every pre-tokenizer by its pieces.

The ids and pieces are llama.cpp's. Before they were written down, each pre-tokenizer was compared with
llama.cpp's on texts of many scripts, and those whose original tokenizer can be had with that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.gguf.pre_tokenizers import pre_tokenizer
from pagefleet.engine.files.gguf.tokenizer import check_gguf_tokenizer, write_gguf_tokenizer
from pagefleet.engine.text.hf_tokenizer import HFTokenizer

CONTROL, USER_DEFINED, BYTE, NORMAL, UNKNOWN = 3, 4, 6, 1, 2

SMOLLM2 = {
    "a\n\n1": [81, 1116, 33],
    "    1": [289, 33],
    "Hello, world! 12345": [19556, 28, 905, 17, 216, 33, 34, 35, 36, 37],
    "2024-11-30T12:34": [34, 32, 34, 36, 29, 33, 33, 29, 35, 32, 68, 33, 34, 42, 35, 36],
}


@pytest.mark.parametrize("text", SMOLLM2)
def test_the_demo_model_splits_digits_first(smollm2_folder, text):
    tokenizer = HFTokenizer(smollm2_folder)
    assert tokenizer.encode(text) == SMOLLM2[text]
    assert tokenizer.decode(SMOLLM2[text]) == text


TEXT = "I'M 12345 cafés,あ世 ²{a}HTMLParser\r\n\n   x (!"
PIECES = {
    "gpt-2": "I|'|M| 12345| cafés|,|あ世| ²|{|a|}|HTMLParser|\r\n\n  | x| (!",
    "smollm": "I|'|M| |1|2|3|4|5| cafés|,|あ世| |²|{|a|}|HTMLParser|\r\n\n  | x| (!",
    "starcoder": "I|'|M| |1|2|3|4|5| cafés|,|あ世| |²|{|a|}|HTMLParser|\r\n\n  | x| (!",
    "llama-bpe": "I|'M| |123|45| cafés|,あ世| |²|{a|}HTMLParser|\r\n\n|  | x| (!",
    "chatglm-bpe": "I|'M| |123|45| cafés|,あ世| |²|{a|}HTMLParser|\r\n\n|  | x| (!",
    "qwen2": "I|'M| |1|2|3|4|5| cafés|,あ世| |²|{a|}HTMLParser|\r\n\n|  | x| (!",
    "gpt-4o": "I'M| |123|45| cafés|,あ世| |²|{a|}HTMLParser|\r\n\n|  | x| (!",
    "tekken": "I|'M| |1|2|3|4|5| cafés|,あ世| |²|{a|}HTMLParser|\r\n\n|  | x| (!",
    "deepseek-v3": "I|'M| |123|45| cafés|,|あ世| |²|{a|}HTMLParser|\r\n\n|  | x| (!",
    "deepseek-llm": "I|'|M| |12345| caf|é|s|,|あ世| |²|{|a|}|HTMLParser|\r|\n|\n|  | x| (!",
    "deepseek-coder": "I|'|M| |1|2|3|4|5| cafés|,|あ世| |²|{|a|}|HTMLParser|\r|\n|\n|  | x| (!",
    "falcon": "I|'|M| |123|45| cafés|,|あ世| ²|{|a|}|HTMLParser|\r\n\n  | x| |(!",
    "bloom": "I'M| 12345| cafés|,|あ世| ²{a}HTMLParser|\r\n\n  | x| (!",
    "viking": "I'M| |1|2|3|4|5| cafés|,|あ世| |²|{a}HTMLParser|\r\n\n  | x| (!",
    "laguna": "I|'M| |1|2|3|4|5| cafés|,あ世| |²|{a|}HTMLParser|\r|\n\n|  | x| (!",
}


@pytest.mark.parametrize("name", PIECES)
def test_each_pre_tokenizer_splits_as_llama_cpp_does(name):
    found = pre_tokenizer(name).build().pre_tokenize_str(TEXT)
    ends = [end for _, (_, end) in found]
    pieces = [TEXT[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert "|".join(pieces) == PIECES[name]


@pytest.mark.parametrize(
    ("scalars", "sentence"),
    [
        ({"tokenizer.ggml.model": "gpt2"}, "tokenizer.ggml.pre is missing"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "default"}, "is 'default'"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "kimi-k2"}, "'kimi-k2'.*not supported"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "of-tomorrow"}, "'of-tomorrow'"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer model 't5'"),
        ({}, "tokenizer model None"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.remove_extra_whitespaces": True}, "white space"),
    ],
)
def test_what_is_not_known_exactly_is_refused(scalars, sentence):
    with pytest.raises(ModelLoadError, match=sentence):
        check_gguf_tokenizer(scalars)


def built(folder: Path, tokens: dict[str, int], **ggml: Any) -> HFTokenizer:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in ggml.items() if key != "template"}
    metadata |= {"tokenizer.ggml.tokens": list(tokens), "tokenizer.ggml.token_type": list(tokens.values())}
    if "template" in ggml:
        metadata["tokenizer.chat_template"] = ggml["template"]
    write_gguf_tokenizer(metadata, folder)
    return HFTokenizer(folder)


BYTE_LEVEL = {
    "<|bos|>": CONTROL,
    "<|eos|>": CONTROL,
    "größe": USER_DEFINED,
    "<\uff5cUser\uff5c>": CONTROL,
    **dict.fromkeys(["Ġ", *"abcdefgh'1", "ab", "abc"], NORMAL),
}


@pytest.mark.parametrize(
    ("pre", "flags", "expected"),
    [
        ("gpt-2", {}, ["ab"]),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, ["<|bos|>", "ab", "<|eos|>"]),
        ("gpt-2", {"add_space_prefix": True}, ["Ġ", "ab"]),
        # Llama 3's vocabulary has BOS where the file says nothing.
        ("llama-bpe", {}, ["<|bos|>", "ab"]),
        ("llama-bpe", {"add_bos_token": False}, ["ab"]),
    ],
)
def test_the_flags_of_a_byte_level_vocabulary_count(tmp_path, pre, flags, expected):
    tokenizer = built(
        tmp_path, BYTE_LEVEL, model="gpt2", pre=pre, merges=["a b"], bos_token_id=0, eos_token_id=1, **flags
    )
    assert [tokenizer.token_name(each) for each in tokenizer.encode("ab")] == expected
    # "abc" is a token, but no merges lead to it.
    whole = [tokenizer.token_name(each) for each in tokenizer.encode("abc", add_special_tokens=False)]
    assert whole[-1] == ("abc" if pre == "llama-bpe" else "c")


def test_added_tokens_are_found_in_a_text_whatever_their_letters(tmp_path):
    template = "{{ bos_token }}{% for m in messages %}<\uff5cUser\uff5c>{{ m.content }}{% endfor %}"
    tokenizer = built(
        tmp_path, BYTE_LEVEL, model="gpt2", pre="gpt-2", merges=[], bos_token_id=0, template=template
    )
    token_ids = tokenizer.apply_chat_template([{"role": "user", "content": "größe ab"}])
    assert token_ids[:3] == [0, 3, 2]
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == "<|bos|><\uff5cUser\uff5c>größe ab"
    assert tokenizer.decode(token_ids) == "größe ab"


PIECE_SCORES = {"▁": -3.0, "a": -4.0, "b": -5.0, "▁a": -1.0, "ab": -2.0, "▁ab": -2.5}
SENTENCEPIECE = {
    "<unk>": UNKNOWN,
    "<s>": CONTROL,
    "</s>": CONTROL,
    **{f"<0x{byte:02X}>": BYTE for byte in range(256)},
    **dict.fromkeys(PIECE_SCORES, NORMAL),
}


@pytest.mark.parametrize(
    ("flags", "text", "expected"),
    [
        ({}, "ab", ["<s>", "▁ab"]),
        ({"add_space_prefix": False}, "ab", ["<s>", "ab"]),
        ({"add_bos_token": False, "add_eos_token": True}, "ab", ["▁ab", "</s>"]),
        ({}, "a ab é", ["<s>", "▁a", "▁ab", "▁", "<0xC3>", "<0xA9>"]),
        ({"add_bos_token": False}, "<s>a", ["<s>", "▁a"]),
        # A byte's name in a text is text.
        ({"add_bos_token": False}, "<0x41>", ["▁", *(f"<0x{ord(letter):02X}>" for letter in "<0x41>")]),
    ],
)
def test_the_flags_of_a_sentencepiece_vocabulary_count(tmp_path, flags, text, expected):
    scores = [PIECE_SCORES.get(token, 0.0) for token in SENTENCEPIECE]
    tokenizer = built(
        tmp_path, SENTENCEPIECE, model="llama", scores=scores, bos_token_id=1, eos_token_id=2, **flags
    )
    token_ids = tokenizer.encode(text)
    assert [tokenizer.token_name(each) for each in token_ids] == expected
    assert tokenizer.decode(token_ids) == text.replace("<s>", "")


def test_runs_of_spaces_are_found_before_words(tmp_path):
    """Gemma's vocabulary has user-defined pieces of spaces and line ends, which are never merged."""
    added = dict.fromkeys(["▁▁", "▁▁▁", "\n\n", "<turn>"], USER_DEFINED)
    vocabulary = {**SENTENCEPIECE, **added}
    scores = [PIECE_SCORES.get(token, 0.0) for token in vocabulary]
    tokenizer = built(tmp_path, vocabulary, model="llama", scores=scores, add_space_prefix=False)
    names = [tokenizer.token_name(each) for each in tokenizer.encode("<turn>a  ab    b\n\na <0x41>")]
    letters = [f"<0x{ord(letter):02X}>" for letter in "<0x41>"]
    assert names == ["<turn>", "a", "▁▁", "ab", "▁▁▁", "▁", "b", "\n\n", "a", "▁", *letters]
    assert [tokenizer.token_name(each) for each in tokenizer.encode("\n\n<0x41>\n\n")][1:-1] == letters
