"""HFTokenizer against transformers on the real SmolLM2, and the corners that SmolLM2 does not have."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from pagefleet.engine.errors import InvalidRequestError, ModelLoadError
from pagefleet.engine.text.hf_tokenizer import HFTokenizer

TEXTS = [
    "Hello, world!",
    "  two  spaces\tand\ttabs\r\n\nlines ",
    "Grüße, 世界! 👩🏽‍🚀 नमस्ते",
    "<|im_start|>user\nhi<|im_end|>",
    "def f(x):\n    return x ** 2  # 1234567890",
    "",
]
CONVERSATIONS = [
    [{"role": "user", "content": "What is 2+2?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Grüße 👋"},
        {"role": "assistant", "content": "Hallo!", "tool_calls": None},
        {"role": "user", "content": "  <b>&amp;</b>\n"},
    ],
]


@pytest.fixture(scope="module")
def tokenizer(smollm2_folder: Path) -> HFTokenizer:
    return HFTokenizer(smollm2_folder)


@pytest.fixture(scope="module")
def reference(smollm2_folder: Path, transformers: Any) -> Any:
    return transformers.AutoTokenizer.from_pretrained(smollm2_folder)


def test_tokens_and_texts_equal_those_of_transformers(tokenizer, reference):
    for text in TEXTS:
        token_ids = tokenizer.encode(text)
        assert token_ids == reference(text)["input_ids"]
        assert tokenizer.decode(token_ids) == reference.decode(token_ids, skip_special_tokens=True)
        assert tokenizer.decode(token_ids, skip_special_tokens=False) == reference.decode(token_ids)
    assert tokenizer.vocab_size == len(reference)


def test_conversations_equal_those_of_transformers(tokenizer, reference):
    for messages in CONVERSATIONS:
        expected = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert tokenizer.apply_chat_template(messages) == expected


def test_a_lone_surrogate_is_no_reason_to_fail(tokenizer):
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a?b")


def test_ids_outside_of_the_vocabulary_add_nothing(tokenizer):
    hello = tokenizer.encode("hello")
    assert tokenizer.decode([-1, *hello, tokenizer.vocab_size + 5]) == "hello"
    decoder = tokenizer.decoder()
    assert [decoder.step(token_id) for token_id in (-1, 10**6)] == ["", ""]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 49151) | st.integers(0, 300), max_size=40), st.booleans())
def test_a_stream_of_any_tokens_adds_up_to_their_text(tokenizer, token_ids, skip_special_tokens):
    """Given random tokens, whose bytes are mostly no valid UTF-8, the pieces join to what decode says."""
    decoder = tokenizer.decoder(skip_special_tokens)
    text = "".join([decoder.step(token_id) for token_id in token_ids]) + decoder.flush()
    assert text == tokenizer.decode(token_ids, skip_special_tokens)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=30))
def test_a_stream_never_gives_half_a_character(tokenizer, text):
    token_ids = tokenizer.encode(text)
    # SmolLM2's vocabulary lacks a few bytes that no assigned character needs.
    assume(tokenizer.decode(token_ids) == text)
    decoder = tokenizer.decoder()
    pieces = [decoder.step(token_id) for token_id in token_ids]
    written = ""
    for piece in pieces:
        written += piece
        assert text.startswith(written)
    assert written == text


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    """A tokenizer in SentencePiece's manner: words with U+2581 for a space, and bytes for the rest."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁cat", "s"]
    vocab = {word: index for index, word in enumerate(words)}
    model = models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    folder = tmp_path_factory.mktemp("byte-fallback")
    tokenizer.save(str(folder / "tokenizer.json"))
    return HFTokenizer(folder)


def test_byte_fallback_waits_for_whole_characters(byte_fallback):
    """Given words, then the bytes of two characters, then a word: spaces and characters come out whole."""
    the, cat = (byte_fallback._tokenizer.token_to_id(word) for word in ("▁the", "▁cat"))
    byte_ids = [3 + byte for byte in "猫🐈".encode()]
    token_ids = [1, the, cat, *byte_ids, the, 2]
    decoder = byte_fallback.decoder()
    pieces = [decoder.step(token_id) for token_id in token_ids]
    assert pieces == ["", "the", " cat", "", "", "猫", "", "", "", "🐈", " the", ""]
    assert decoder.flush() == ""
    assert byte_fallback.decode(token_ids) == "the cat猫🐈 the"


def continued(tokenizer: HFTokenizer, token_ids: list[int], num_prompt_tokens: int, **options: Any) -> str:
    decoder = tokenizer.decoder(**options, prompt_token_ids=token_ids[:num_prompt_tokens])
    return "".join(map(decoder.step, token_ids[num_prompt_tokens:])) + decoder.flush()


def test_the_first_word_after_a_prompt_keeps_its_space(byte_fallback):
    """Unless it begins the text: after an empty prompt, which is the token `<s>` alone."""
    start, the, cat = (byte_fallback._tokenizer.token_to_id(word) for word in ("<s>", "▁the", "▁cat"))
    assert continued(byte_fallback, [start, the, cat], 2) == " cat"
    assert continued(byte_fallback, [start, the, cat], 1) == "the cat"
    assert continued(byte_fallback, [start, the, start, start, cat], 4) == " cat", "as if they were not there"
    kept = byte_fallback.decoder(kept=["<s>"], prompt_token_ids=[the, start])
    assert kept.step(cat) == " cat"


@settings(deadline=None, max_examples=100)
@given(st.text("the cat猫é🐈 ", max_size=12), st.data(), st.booleans())
def test_a_prompt_and_what_follows_add_up_to_the_whole_text(byte_fallback, text, data, skip_special_tokens):
    token_ids = [1, *byte_fallback.encode(text), 2]
    cut = data.draw(st.integers(0, len(token_ids)))
    parts = [
        byte_fallback.decode_prompt(token_ids[:cut], skip_special_tokens),
        continued(byte_fallback, token_ids, cut, skip_special_tokens=skip_special_tokens),
    ]
    assert "".join(parts) == byte_fallback.decode(token_ids, skip_special_tokens)
    assert "\ufffd" not in parts[1]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 300), max_size=20), st.data())
def test_a_byte_level_prompt_and_what_follows_add_up_too(tokenizer, token_ids, data):
    cut = data.draw(st.integers(0, len(token_ids)))
    whole = tokenizer.decode(token_ids)
    assert tokenizer.decode_prompt(token_ids[:cut]) + continued(tokenizer, token_ids, cut) == whole


def test_added_tokens_are_plain_text_though_their_letters_may_spell_bytes(tmp_path):
    """An "ö" is the byte 0xF6 in GPT-2's alphabet, "ą" the byte 0x05."""
    vocab = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = tokenizers.Tokenizer(models.BPE(vocab, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_tokens(["größe", "są"])
    library.add_special_tokens(["<|ü|>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HFTokenizer(tmp_path)
    text = "die größe są ó <|ü|> Ġ"
    token_ids = tokenizer.encode(text)
    assert len(token_ids) < len(text.encode()) - 10, "the added tokens are tokens"
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == text
    assert tokenizer.decode(token_ids) == text.replace("<|ü|>", "")
    assert continued(tokenizer, token_ids, 0, skip_special_tokens=False) == text
    assert b"".join(map(tokenizer.token_bytes, token_ids)).decode() == text


def test_half_a_character_at_the_end_comes_as_a_replacement(byte_fallback, tokenizer):
    for any_tokenizer, token_ids in (
        (byte_fallback, [3 + 0xE7]),
        (tokenizer, tokenizer.encode("猫")[:1]),
    ):
        decoder = any_tokenizer.decoder()
        assert decoder.step(token_ids[0]) == ""
        assert decoder.flush() == "\ufffd"


def test_padding_and_truncation_of_a_training_run_are_ignored(smollm2_folder, tmp_path):
    original = tokenizers.Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    original.enable_truncation(3)
    original.enable_padding(length=50)
    original.save(str(tmp_path / "tokenizer.json"))
    assert HFTokenizer(tmp_path).encode("one two three four five") == HFTokenizer(smollm2_folder).encode(
        "one two three four five"
    )


def with_template(byte_fallback: HFTokenizer, folder: Path, template: Any, **config: Any) -> HFTokenizer:
    byte_fallback._tokenizer.save(str(folder / "tokenizer.json"))
    content = {"chat_template": template, "bos_token": {"content": "<s>"}, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    return HFTokenizer(folder)


def test_templates_find_what_they_are_written_for(byte_fallback, tmp_path):
    """Special tokens, tojson without HTML escapes, loop controls, generation marks, no nulls."""
    template = (
        "{{ bos_token }}"
        "{% for message in messages %}\n"
        "    {% if message.role == 'user' %}\n{% continue %}{% endif %}\n"
        "{% generation %}{{ message | tojson }}{% endgeneration %}{% endfor %}"
        "{% if strftime_now('%Y') | length == 4 and tools is none and add_generation_prompt %}!{% endif %}"
    )
    tokenizer = with_template(byte_fallback, tmp_path, [{"name": "default", "template": template}])
    messages = [{"role": "user", "content": "x"}, {"role": "system", "content": "<é>", "name": None}]
    rendered = tokenizer._chat_template.render(messages)
    assert rendered == '<s>{"role": "system", "content": "<é>"}!'


def test_tools_and_variables_reach_a_template(byte_fallback, tmp_path):
    """And where a checkpoint has a template for tools, they do it with that one."""
    plain = "{% for m in messages %}{{ m.tool_calls }}{% endfor %}{{ tools }}{{ thinking }}{{ bos_token }}"
    named = [{"name": "default", "template": plain}, {"name": "tool_use", "template": "with {{ tools }}"}]
    tokenizer = with_template(byte_fallback, tmp_path, named)
    messages, tools = [{"role": "a", "tool_calls": [1]}], [{"type": "function"}]
    variables = {"thinking": False, "bos_token": "x", "tools": 1}
    said = tokenizer.decode(tokenizer.apply_chat_template(messages, None, variables))
    assert said == "[1]NoneFalse", "a template's own names are not a caller's to set"
    assert tokenizer.decode(tokenizer.apply_chat_template(messages, tools)) == "with [{'type': 'function'}]"
    assert tokenizer.chat_template == "with {{ tools }}"


def test_some_special_tokens_are_kept(byte_fallback, tokenizer):
    """For either kind of vocabulary."""
    for each, special in ((byte_fallback, ("<s>", "</s>")), (tokenizer, ("<|im_start|>", "<|im_end|>"))):
        token_ids = [
            token_id
            for part in (special[0], "the cat", special[1])
            for token_id in each.encode(part, add_special_tokens=False)
        ]
        decoder = each.decoder(kept=[special[1], "no token"])
        text = "".join(map(decoder.step, token_ids)) + decoder.flush()
        assert text.strip() == f"the cat{special[1]}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5].content.upper() }}", "has no element 5"),
        ("{% if %}", "Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_a_template_that_fails_is_the_requests_error(byte_fallback, tmp_path, template, reason):
    tokenizer = with_template(byte_fallback, tmp_path, template)
    with pytest.raises(InvalidRequestError, match=reason) as raised:
        tokenizer.apply_chat_template(CONVERSATIONS[0])
    assert (raised.value.code, raised.value.param) == ("chat_template", "messages")


def test_chatting_needs_messages_and_a_template(byte_fallback, tokenizer):
    with pytest.raises(InvalidRequestError, match="no chat template"):
        byte_fallback.apply_chat_template(CONVERSATIONS[0])
    with pytest.raises(InvalidRequestError, match="at least one message"):
        tokenizer.apply_chat_template([])


def test_a_broken_tokenizer_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        HFTokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[]", "must contain a JSON object, not a list"),
        ("null", "must contain a JSON object, not null"),
        ("{", "is not valid JSON"),
        ('{"chat_template": 5}', "must be a text, or a list"),
        ('{"chat_template": [{"name": "default"}]}', "'template'"),
        ('{"chat_template": ["x"]}', "wrong type"),
        ('{"bos_token": 7}', "wrong type"),
        ('{"eos_token": {"text": "</s>"}}', "wrong type"),
    ],
)
def test_a_broken_tokenizer_config_is_named(byte_fallback, tmp_path, content, sentence):
    shutil.copy(byte_fallback._path, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelLoadError, match=sentence) as caught:
        HFTokenizer(tmp_path)
    assert "tokenizer_config.json" in str(caught.value)


def test_a_byte_order_mark_does_no_harm(byte_fallback, tmp_path):
    shutil.copy(byte_fallback._path, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "hi"}', encoding="utf-8-sig")
    assert HFTokenizer(tmp_path).chat_template == "hi"


def test_a_long_text_does_not_hold_up_other_threads(tokenizer):
    """A megabyte takes longer than a worker's lease: whoever beats it must go on."""
    text = "word" + " word" * 99_999
    (first,), (other,) = tokenizer.encode("word"), tokenizer.encode(" word")
    gaps, stop = [], threading.Event()

    def tick():
        last = time.monotonic()
        while not stop.is_set():
            time.sleep(0.001)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    ticking = threading.Thread(target=tick)
    ticking.start()
    begun_at = time.monotonic()
    token_ids = tokenizer.encode(text)
    took_s = time.monotonic() - begun_at
    stop.set()
    ticking.join()
    assert token_ids == [first, *[other] * 99_999]
    assert max(gaps) < took_s / 2, (max(gaps), took_s)
