"""Texts that are looked up are those that decoding the whole window gives, for every kind of tokenizer."""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from pagefleet.engine.loading.tokenizer_folder import tokenizer_folder
from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.text.detokenizer import Detokenized, IncrementalDetokenizer, look_up
from pagefleet.engine.text.hf_decoders import has_independent_tokens
from pagefleet.engine.text.hf_tokenizer import HFTokenizer
from pagefleet.engine.text.tokenizer import ByteTokenizer, TokenDecoder, Tokenizer

SPECIAL = ["<unk>", "<s>", "</s>"]
WORDS = [
    *(
        "▁",
        "▁▁",
        "▁the",
        "▁cat",
        "s",
        "t",
        "##s",
        "##ing",
        "do",
        "n't",
        ".",
        "!",
        " .",
        "</w>",
        "a</w>",
        "b</w>",
    ),
    *("Ġ", "Ġa", "ä", "猫", "\ufffd", "x\ufffd", "  ", "|", "<pad>", "added"),
]
BLANKS = decoders.Replace("▁", " ")
DECODERS = {
    "llama": (
        decoders.Sequence(
            [BLANKS, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)],
        ),
        True,
    ),
    "gemma": (decoders.Sequence([BLANKS, decoders.ByteFallback(), decoders.Fuse()]), True),
    "metaspace": (decoders.Metaspace(), True),
    "wordpiece": (decoders.WordPiece("##", cleanup=True), True),
    "none": (None, True),
    # The text of a token depends on its neighbours.
    "suffix": (decoders.BPEDecoder("</w>"), False),
    "ctc": (decoders.CTC("<pad>", "|", cleanup=True), False),
    "wide strip": (decoders.Sequence([BLANKS, decoders.Fuse(), decoders.Strip(" ", 2, 0)]), False),
    "late replace": (decoders.Sequence([decoders.Fuse(), decoders.Replace("▁▁", "-")]), False),
}


class WholeTexts:
    """The decoders before any text was looked up."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decoder(self, skip_special_tokens=True, kept=(), prompt_token_ids=()) -> TokenDecoder:
        tokenizer = self._tokenizer
        if isinstance(tokenizer, ByteTokenizer):
            names = tokenizer.SPECIAL_TOKENS
            skipped = {each for each, name in names.items() if name not in kept and skip_special_tokens}
            decoder, context = Bytes(tokenizer, skipped), prompt_token_ids[-8:]
        else:
            assert isinstance(tokenizer, HFTokenizer)
            skipped = set(tokenizer._special_ids) if skip_special_tokens else set()
            skipped -= {tokenizer._tokenizer.token_to_id(each) for each in kept}
            decoder = (Bytes if tokenizer._is_byte_level else Window)(tokenizer, skipped)
            context = tokenizer._context(prompt_token_ids, skipped)
        for token_id in context:
            decoder.step(token_id)
        return decoder


class Bytes(TokenDecoder):
    def __init__(self, tokenizer: Tokenizer, skipped: set[int]) -> None:
        self.tokenizer, self.skipped = tokenizer, skipped
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def step(self, token_id: int) -> str:
        if token_id in self.skipped:
            return ""
        is_special = isinstance(self.tokenizer, ByteTokenizer) and self.tokenizer.is_added(token_id)
        before = self.flush() if is_special else ""
        return before + self.utf8.decode(self.tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        text = self.utf8.decode(b"", final=True)
        self.utf8.reset()
        return text


class Window(TokenDecoder):
    def __init__(self, tokenizer: Tokenizer, skipped: set[int]) -> None:
        self.tokenizer, self.skipped = tokenizer, skipped
        self.context: list[int] = []
        self.held: list[int] = []

    def step(self, token_id: int) -> str:
        if token_id in self.skipped:
            return ""
        self.held.append(token_id)
        new = self.flush()
        if not new or new.endswith("\ufffd"):
            return ""
        self.context, self.held = self.held, []
        return new

    def flush(self) -> str:
        context = self.tokenizer.decode(self.context, skip_special_tokens=False)
        return self.tokenizer.decode(self.context + self.held, skip_special_tokens=False)[len(context) :]


def made(folder: Path, decoder: decoders.Decoder | None) -> HFTokenizer:
    """A tokenizer of few tokens: bytes, words, and added ones."""
    names = dict.fromkeys([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS])
    model = models.BPE({name: index for index, name in enumerate(names)}, [], unk_token="<unk>")
    library = tokenizers.Tokenizer(model)
    library.add_special_tokens(SPECIAL)
    library.add_tokens(["added", "<think>", " spaced"])
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    if decoder is not None:
        library.decoder = decoder
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    return HFTokenizer(folder)


def mistrals_file(name: str) -> Path:
    package = pytest.importorskip("mistral_common", reason="pip install '.[mistral]'")
    return Path(package.__file__).parent / "data" / name


def sentencepiece(folder: Path, smollm2_folder: Path) -> Tokenizer:
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(mistrals_file("tokenizer.model.v1").read_bytes())
    return HFTokenizer(tokenizer_folder(folder, folder / "cache"))


def tekken(folder: Path, smollm2_folder: Path) -> Tokenizer:
    """The real file, cut down to its first pieces."""
    content = json.loads(mistrals_file("tekken_240911.json").read_text(encoding="utf-8"))
    content["vocab"] = content["vocab"][:3000]
    content["config"] |= {"default_vocab_size": 3100, "default_num_special_tokens": 100}
    folder.mkdir()
    (folder / "tekken.json").write_text(json.dumps(content), encoding="utf-8")
    return HFTokenizer(tokenizer_folder(folder, folder / "cache"))


KINDS: dict[str, Callable[[Path, Path], Tokenizer]] = {
    "bytes": lambda folder, smollm2_folder: ByteTokenizer(300),
    "byte-level BPE": lambda folder, smollm2_folder: HFTokenizer(smollm2_folder),
    "tekken": tekken,
    "SentencePiece": sentencepiece,
    **{name: lambda folder, _, it=decoder: made(folder, it) for name, (decoder, _) in DECODERS.items()},
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory, smollm2_folder) -> Tokenizer:
    return KINDS[request.param](tmp_path_factory.mktemp("kind") / "folder", smollm2_folder)


@pytest.fixture(scope="module")
def token_ids(tokenizer) -> st.SearchStrategy[list[int]]:
    """Real texts, and tokens of all kinds in any order: parts of characters, special and unknown ones."""
    size = tokenizer.vocab_size
    text = st.text("the cats do n't.!é猫🐈 \n\ufffd", max_size=12).map(tokenizer.encode)
    any_ids = st.lists(st.integers(-1, size + 2) | st.integers(0, min(size, 300)), max_size=12)
    few_ids = st.lists(st.integers(size - min(size, 40), size), max_size=12)
    parts = st.lists(text | any_ids | few_ids, max_size=4)
    return parts.map(lambda some: [token_id for part in some for token_id in part])


def test_any_stream_has_the_texts_of_whole_windows(tokenizer, token_ids):
    @settings(deadline=None, max_examples=120)
    @given(
        prompt=token_ids,
        output=token_ids,
        skip=st.booleans(),
        kept=st.sampled_from([(), ("</s>",)]),
        stop=st.sampled_from([(), (), ("cat", "s"), ("\n",)]),
        is_called=st.booleans(),
    )
    def check(prompt, output, skip, kept, stop, is_called):
        params = SamplingParams(stop=stop, skip_special_tokens=skip, kept_special_tokens=kept)
        expected = IncrementalDetokenizer(WholeTexts(tokenizer), params, prompt)
        found = IncrementalDetokenizer(tokenizer, params, prompt)
        for token_id in output:
            wanted = expected.append(token_id)
            (text,) = look_up([found], [token_id])
            # A text that was looked up need not be appended.
            if text is None or is_called:
                assert found.append(token_id) == wanted
            assert text in (None, wanted.text)
            if wanted.stop is not None:
                return
        assert found.flush() == expected.flush()
        assert look_up([found], [65]) == [None]

    check()


@pytest.mark.parametrize("name", DECODERS)
def test_texts_are_looked_up_where_they_do_not_depend_on_each_other(tmp_path, name):
    decoder, is_independent = DECODERS[name]
    tokenizer = made(tmp_path / "folder", decoder)
    the, cat = (tokenizer._tokenizer.token_to_id(each) for each in ("▁the", "▁cat"))
    detokenizer = IncrementalDetokenizer(tokenizer, SamplingParams())
    for token_id in (the, cat):
        # The first token of a text, and one that is new, are not known.
        assert look_up([detokenizer], [token_id]) == [None]
        text = detokenizer.append(token_id).text
    assert look_up([detokenizer], [cat]) == [text if is_independent else None]


@pytest.mark.parametrize(
    ("decoder", "is_independent"),
    [
        ({"type": "Sequence", "decoders": []}, True),
        ({"type": "Replace", "pattern": {"Regex": "▁+"}, "content": " "}, True),
        ({"type": "Strip", "content": " ", "start": 3, "stop": 1}, True),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]}, False),
        (
            {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "start": 0, "stop": 1}]},
            False,
        ),
        ({"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Fuse"}]}, False),
        ({"type": "Unheard"}, False),
    ],
)
def test_a_decoder_is_only_trusted_if_it_is_known(decoder, is_independent):
    assert has_independent_tokens(decoder) == is_independent


def test_while_a_character_is_incomplete_nothing_is_looked_up():
    detokenizer = IncrementalDetokenizer(ByteTokenizer(), SamplingParams())
    first, *_ = "é".encode()
    assert look_up([detokenizer] * 2, [65, first]) == ["A", None]
    assert detokenizer.append(first) == Detokenized("", None)
    assert look_up([detokenizer], [65]) == [None]
    assert detokenizer.append(65) == Detokenized("\ufffdA", None)
    assert look_up([detokenizer], [66]) == ["B"]


@pytest.mark.alone
def test_a_text_is_looked_up_within_half_a_microsecond(smollm2_folder):
    """The goal for a step of 256 sequences; the bar is three times as high."""
    tokenizer = HFTokenizer(smollm2_folder)
    token_ids = tokenizer.encode("The bar is three times as high.") * 32
    detokenizers = [IncrementalDetokenizer(tokenizer, SamplingParams(), token_ids) for _ in token_ids]
    times = []
    for _ in range(50):
        begun_at = time.perf_counter()
        found = look_up(detokenizers, token_ids)
        times.append(time.perf_counter() - begun_at)
    assert None not in found
    assert min(times) / len(token_ids) < 1.5e-6
