"""IncrementalDetokenizer: the text that token i adds is a function of tokens 0..i alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from pagefleet.engine.errors import InvalidRequestError
from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.text.detokenizer import Detokenized, IncrementalDetokenizer
from pagefleet.engine.text.tokenizer import ByteTokenizer, TokenDecoder

TOKENIZER = ByteTokenizer()


class ChunkTokenizer(ByteTokenizer):
    """Token i stands for a whole piece of text: what a trained vocabulary does."""

    def __init__(self, pieces: list[str]) -> None:
        super().__init__()
        self._pieces = pieces

    def decoder(
        self,
        skip_special_tokens: bool = True,
        kept: Collection[str] = (),
        prompt_token_ids: Sequence[int] = (),
    ) -> TokenDecoder:
        return _ChunkDecoder(self._pieces)


class _ChunkDecoder(TokenDecoder):
    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    def step(self, token_id: int) -> str:
        return self._pieces[token_id]

    def flush(self) -> str:
        return ""


def detokenize(pieces: list[str], **params: object) -> list[Detokenized]:
    """What each piece adds, up to the stop."""
    detokenizer = IncrementalDetokenizer(ChunkTokenizer(pieces), SamplingParams(**params))
    results = []
    for token_id in range(len(pieces)):
        results.append(detokenizer.append(token_id))
        if results[-1].stop is not None:
            return results
    return [*results, Detokenized(detokenizer.flush(), None)]


def texts(pieces: list[str], **params: object) -> list[str]:
    return [text for text, _ in detokenize(pieces, **params)]


def test_a_character_comes_whole_or_not_at_all():
    detokenizer = IncrementalDetokenizer(TOKENIZER, SamplingParams())
    assert [detokenizer.append(byte).text for byte in "aé🙂".encode()] == ["a", "", "é", "", "", "", "🙂"]
    # Half a character at the end is shown as what it is.
    assert detokenizer.append("é".encode()[0]).text == ""
    assert detokenizer.flush() == "\ufffd"


def test_text_that_may_become_a_stop_string_waits():
    # "<" may begin the stop string; "<b" cannot.
    assert texts(["a", "<", "b", "c<", "/"], stop=("<end>",)) == ["a", "", "<b", "c", "</", ""]
    # What is held at the end was no stop string: it is let go.
    assert texts(["a<e", "n"], stop=("<end>",)) == ["a", "", "<en"]


def test_a_stop_string_is_found_across_tokens():
    assert detokenize(["hello <", "en", "d> more", "x"], stop=("<end>",)) == [
        ("hello ", None),
        ("", None),
        ("", "<end>"),
    ]


def test_the_stop_string_can_stay_in_the_text_which_ends_there_all_the_same():
    assert texts(["hello <", "en", "d> more"], stop=("<end>",), include_stop_str_in_output=True) == [
        "hello ",
        "",
        "<end>",
    ]


@pytest.mark.parametrize("pieces", [["xabcd"], ["x", "a", "b", "c", "d"], ["xa", "bc", "d"]])
def test_which_stop_string_counts_does_not_depend_on_the_tokens(pieces: list[str]):
    # "bc" ends first, though "abcd" begins first.
    assert detokenize(pieces, stop=("abcd", "bc"))[-1].stop == "bc"
    assert "".join(texts(pieces, stop=("abcd", "bc"))) == "xa"
    # Both end together: the longer one.
    assert detokenize(pieces, stop=("bc", "abc"))[-1].stop == "abc"
    assert "".join(texts(pieces, stop=("bc", "abc"))) == "x"


def test_before_min_tokens_a_stop_string_is_text():
    # The first one is passed over, the second ends the text.
    assert texts(["a!", "b!", "c", "d!"], stop=("!",), min_tokens=3) == ["a!", "b!", "c", "d"]
    # One that begins before and ends after counts.
    assert detokenize(["a<", ">b"], stop=("<>",), min_tokens=2)[-1].stop == "<>"
    # One that was passed over is not found later in what is still held back.
    assert texts(["ab", "c"], stop=("b", "abd"), min_tokens=2) == ["", "abc", ""]


def test_special_tokens_are_text_only_where_asked_for():
    token_ids = [*b"a", TOKENIZER.EOS_TOKEN_ID, *b"b"]
    assert TOKENIZER.decode(token_ids) == "ab"
    assert TOKENIZER.decode(token_ids, skip_special_tokens=False) == "a<|eos|>b"
    # Half a character before a special token stays half: it comes before it.
    half = "é".encode()[0]
    assert TOKENIZER.decode([half, TOKENIZER.EOS_TOKEN_ID], skip_special_tokens=False) == "\ufffd<|eos|>"
    detokenizer = IncrementalDetokenizer(TOKENIZER, SamplingParams(skip_special_tokens=False))
    assert [detokenizer.append(token_id).text for token_id in token_ids] == ["a", "<|eos|>", "b"]


def test_some_special_tokens_are_text_where_the_others_are_not():
    token_ids = [TOKENIZER.BOS_TOKEN_ID, *b"a", TOKENIZER.EOS_TOKEN_ID, *b"b"]
    detokenizer = IncrementalDetokenizer(TOKENIZER, SamplingParams(kept_special_tokens=["<|eos|>", "none"]))
    assert [detokenizer.append(token_id).text for token_id in token_ids] == ["", "a", "<|eos|>", "b"]


def test_the_byte_tokenizer_has_a_chat_template_that_refuses_what_is_no_text():
    token_ids = TOKENIZER.apply_chat_template([{"role": "user", "content": "hi"}])
    assert TOKENIZER.decode(token_ids) == "user: hi\nassistant: "
    tools, variables = [{"type": "function"}], {"opening": "<think>"}
    assert TOKENIZER.decode(
        TOKENIZER.apply_chat_template([{"role": "a", "content": "b", "tool_call_id": "7"}], tools, variables)
    ) == ('[{"type": "function"}]\n{"opening": "<think>"}\na: b\n{"tool_call_id": "7"}\nassistant: <think>')
    with pytest.raises(InvalidRequestError, match="'content'") as raised:
        TOKENIZER.apply_chat_template([{"role": "user", "content": [1]}])
    assert raised.value.code == "chat_template"


@settings(deadline=None)
@given(st.text())
def test_the_byte_tokenizer_covers_every_text(text: str):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_a_character_that_the_prompt_begins_comes_whole_and_a_stop_string_is_found_behind_it():
    prompt, output = "a猫".encode()[:-1], "猫"[-1:].encode()[-1:] + b"!x"
    detokenizer = IncrementalDetokenizer(TOKENIZER, SamplingParams(stop=("!",)), list(prompt))
    assert [detokenizer.append(byte) for byte in output[:2]] == [("猫", None), ("", "!")]
    assert TOKENIZER.decode_prompt(list(prompt)) == "a"


def oracle(text: str, stops: tuple[str, ...], include_stop: bool) -> tuple[str, str | None]:
    """The definition: the shortest beginning of the text that ends in a stop string, without it."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return (text[:end] if include_stop else text[: end - len(stop)]), stop
    return text, None


# Few letters, so that stop strings and their beginnings come up all the time.
PIECES = st.lists(st.text("abé", max_size=4), max_size=12)
STOPS = st.lists(st.text("abé", min_size=1, max_size=4), max_size=3).map(tuple)


@settings(deadline=None)
@given(pieces=PIECES, stops=STOPS, include_stop=st.booleans())
@example(pieces=["a", "ab"], stops=("aab", "ab"), include_stop=False)
@example(pieces=["aa", "b"], stops=("aab",), include_stop=False)
def test_the_texts_join_to_the_text_up_to_the_first_stop(
    pieces: list[str], stops: tuple[str, ...], include_stop: bool
):
    results = detokenize(pieces, stop=stops, include_stop_str_in_output=include_stop)
    text, stop = oracle("".join(pieces), stops, include_stop)
    assert results[-1].stop == stop
    assert "".join(result.text for result in results) == text


@settings(deadline=None)
@given(pieces=PIECES, stops=STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(pieces: list[str], stops: tuple[str, ...]):
    results = detokenize(pieces, stop=stops)
    for index in range(len(results) - 1):
        released = "".join(text for text, _ in results[: index + 1])
        held = "".join(pieces[: index + 1])[len(released) :]
        assert not held or any(stop.startswith(held) for stop in stops)


@settings(deadline=None)
@given(
    data=st.data(),
    token_ids=st.one_of(
        st.text("abé🙂", max_size=20).map(lambda text: list(text.encode())),
        st.lists(st.integers(0, 258), max_size=20),
    ),
    stops=STOPS,
    min_tokens=st.integers(0, 5),
    skip_special_tokens=st.booleans(),
)
def test_cut_anywhere_and_replayed_the_texts_are_the_same(
    data: st.DataObject,
    token_ids: list[int],
    stops: tuple[str, ...],
    min_tokens: int,
    skip_special_tokens: bool,
):
    params = SamplingParams(stop=stops, min_tokens=min_tokens, skip_special_tokens=skip_special_tokens)
    # The prompt may end within a character.
    split = data.draw(st.integers(0, len(token_ids)))
    prompt, token_ids = token_ids[:split], token_ids[split:]
    whole = IncrementalDetokenizer(TOKENIZER, params, prompt)
    expected: list[Detokenized] = []
    for token_id in token_ids:
        expected.append(whole.append(token_id))
        if expected[-1].stop is not None:
            break
    cut = data.draw(st.integers(0, len(expected)))

    # Another worker replays the tokens before the cut and goes on.
    resumed = IncrementalDetokenizer(TOKENIZER, params, prompt)
    replayed = [resumed.append(token_id) for token_id in token_ids[:cut]]
    assert replayed == expected[:cut]
    continued = [resumed.append(token_id) for token_id in token_ids[cut : len(expected)]]
    assert continued == expected[cut:]
    assert resumed.flush() == whole.flush()
