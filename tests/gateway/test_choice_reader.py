"""What is told of a text depends on the text alone, and nothing of it is lost: for every parser."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefleet.api.chat.choice_reader import ChoiceReader, joined, special_tokens
from pagefleet.api.chat.reasoning import REASONING_PARSERS
from pagefleet.api.chat.tool_parsers import TOOL_PARSERS
from pagefleet.api.chat.tool_parsers.text_reader import Kind
from pagefleet.api.contract.chat_message import Reading

NAMES = ["weather", "add"]
READERS = {**TOOL_PARSERS, **REASONING_PARSERS}
WEATHER = '{"name": "weather", "arguments": {"city": "S\\u00e3o \\"P\\" }", "days": [1, {"a": null}]}}'
ADD = '{"name":"add","parameters":{"a":1}}'
SHREDS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", "<think>",
    "</think>", "[THINK]", "[/THINK]", "```json\n", "```", WEATHER, ADD, '{"name": "other", "arguments": {}}',
    '{"arguments": {"a": 1}, "name": "add"}', '{"function": {"name": "add", "arguments": "{}"}}',
    '{"name": "add", "arguments": "{\\"a\\": 1}"}', '{"name": "add", "arguments": null, "id": 7}',
    '{"name": "\\ud800", "arguments": "\\ud800"}', '{"arguments": {"\\ud800": 1}, "name": "add"}',
    '{"name": "add"}', "add{\"a\": 2}", "weather", "[", "]", "{", "}", ",", ";", ":", '"', "\\", " ", "\n",
    "<",
    "\\u00e9", "é", "0", "null", "\u2028", "\0", '"name"', '"arguments"', "Hello, ", "x" * 600,
    f'<tool_call>{{"name": "{"x" * 600}", "arguments": {{}}}}', f"[TOOL_CALLS]{'x' * 400}{{}}",
]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(SHREDS), st.text(max_size=4)), max_size=14).map("".join)
cuts = st.lists(st.integers(0, 400), max_size=12)
parsers = st.sampled_from(sorted(TOOL_PARSERS))
readings = st.builds(
    Reading,
    tools=st.one_of(st.none(), parsers, st.just("one of a newer version")),
    reasoning=st.sampled_from([None, "think"]),
    names=st.sampled_from([["add"], NAMES]),
    parallel=st.booleans(),
    whole_calls=st.booleans(),
)


TRICKY = [
    " " * 70 + f"```json\n{ADD}\n```",
    f"```{'a' * 20}\n{ADD}",
    '{"name"' + " " * 600 + f': "add"}} <tool_call>{ADD}',
    f'<tool_call>{{"name": "{"x" * 600}", "arguments": {{}}}}',
    f"[TOOL_CALLS]{'x' * 400}{{}}",
    '<tool_call>{"name": "a\\ud800", "arguments": "\\ud800"}</tool_call>',
    '[TOOL_CALLS][{"arguments": {"a": "\\ud800"}, "name": "\\ud800"}]',
]


def pieces_of(text, cuts):
    places = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    return [text[begin:end] for begin, end in pairwise(places)]


def told(reading, pieces):
    """What a stream says of a text that comes in these pieces, in order."""
    reader = ChoiceReader(reading, "job", 0)
    return [*(reader.feed(piece) for piece in pieces), reader.end()], reader


@settings(max_examples=200, deadline=None)
@given(texts, cuts, readings)
def test_the_same_however_the_text_is_cut(text, cuts, reading):
    whole, at_once = told(reading, [text])
    streamed, in_pieces = told(reading, pieces_of(text, cuts))
    by_letter, _ = told(reading, list(text))
    assert joined(streamed) == joined(whole) == joined(by_letter)
    # Starlette's way to write it.
    json.dumps(joined(whole), ensure_ascii=False).encode()
    for reason in ("stop", "length", None):
        assert in_pieces.finish_reason(reason) == at_once.finish_reason(reason)


@settings(max_examples=200, deadline=None)
@given(texts, cuts, st.integers(0, 400), readings)
def test_whoever_goes_on_says_exactly_the_rest(text, cuts, cut, reading):
    """One has told the beginning and is gone; another reads that again, in one piece, and goes on."""
    begin, end = text[:cut], text[cut:]
    whole, _ = told(reading, [text])
    first = ChoiceReader(reading, "job", 0)
    had = [first.feed(piece) for piece in pieces_of(begin, cuts)]
    second = ChoiceReader(reading, "job", 0)
    second.feed(begin)
    rest = [second.feed(piece) for piece in pieces_of(end, cuts)] + [second.end()]
    assert joined([*had, *rest]) == joined(whole)


@settings(max_examples=200, deadline=None)
@given(texts, cuts, st.sampled_from(sorted(READERS)))
def test_no_character_is_lost(text, cuts, name):
    """Every character is somebody's, in order; what is nobody's to read is a notation's sign or a blank."""
    reader = READERS[name](["add"] if name == "named" else NAMES)
    pieces = [piece for part in pieces_of(text, cuts) for piece in reader.feed(part)] + reader.end()
    assert "".join(piece.raw for piece in pieces) == text
    calls = 0
    for kind, said, raw in pieces:
        calls += kind is Kind.CALL
        if kind in (Kind.CONTENT, Kind.REASONING):
            assert said == raw
        elif kind is Kind.ARGUMENTS:
            assert calls, "arguments are a call's"
        elif kind is Kind.MARKUP:
            assert calls or re.fullmatch(
                r"\s*(<\|python_tag\|>|</?think>|\[/?THINK\]|\[TOOL_CALLS\])?\s*", raw
            )


@settings(max_examples=200, deadline=None)
@given(texts, parsers)
def test_what_ends_early_has_told_a_beginning(text, parser):
    """What was said is never taken back."""
    reading = Reading(tools=parser, reasoning="think", names=NAMES[:1])
    reader = ChoiceReader(reading, "job", 0)
    so_far = [reader.feed(letter) for letter in text]
    early, late = joined(so_far), joined([*so_far, reader.end()])
    for field in ("content", "reasoning_content"):
        assert late.get(field, "").startswith(early.get(field, ""))
    for before, after in zip(early.get("tool_calls", []), late.get("tool_calls", []), strict=False):
        assert (before["id"], before["function"]["name"]) == (after["id"], after["function"]["name"])
        assert after["function"]["arguments"].startswith(before["function"]["arguments"])


@pytest.mark.parametrize("tools", sorted(TOOL_PARSERS))
@pytest.mark.parametrize("text", TRICKY)
def test_limits_are_the_texts_too(text, tools):
    """What is too long for a name is so however it comes; and what JSON can escape, an answer must hold."""
    reading = Reading(tools=tools, names=NAMES[:1] if tools == "named" else NAMES)
    whole = joined(told(reading, [text])[0])
    assert joined(told(reading, list(text))[0]) == whole
    assert joined(told(reading, pieces_of(text, range(0, 700, 50)))[0]) == whole
    json.dumps(whole, ensure_ascii=False).encode()


def message(text, tools=None, reasoning=None, **fields):
    """The message of a text: content, thoughts, and each call's name with its arguments."""
    deltas, _ = told(Reading(tools=tools, reasoning=reasoning, names=NAMES, **fields), [text])
    found = joined(deltas)
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in found.get("tool_calls", [])
    ]
    return found.get("content"), found.get("reasoning_content"), calls


ARGUED = '{"name": "add", "arguments": {"a": 1}}'
FIRST = '{"arguments": {"a": 1}, "name": "add"}'
OPENAI = '{"type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 1}"}}'
IN_TEXT = ["hermes", "llama3", "mistral", "json"]
NOT_WHOLE = [
    f"{ADD} is how.", f"```json\n{ADD}\n```\nThat is it.", f"So: {ADD}", ADD[:-5],
    "```json\n[1, 2]\n```", '{"name": "nobody", "arguments": {}}', '{"name": "John", "age": 3}',
    "```python\nadd(1)\n```", f"[{ADD}, 5]",
]  # fmt: skip


CITY = ("weather", {"city": 'São "P" }', "days": [1, {"a": None}]})
ONE = ("add", {"a": 1})
BARE = [
    (ADD, [ONE]), (ARGUED, [ONE]), (FIRST, [ONE]), (OPENAI, [ONE]), (f"\n{ARGUED}\n", [ONE]),
    (f"```json\n{ARGUED}\n```", [ONE]), (f"```\n{ADD}\n```\n", [ONE]), (f"[{ADD}, {WEATHER}]", [ONE, CITY]),
    (f"```json\n[{WEATHER},\n{ADD}]\n```", [CITY, ONE]),
    (f"```json\n{ADD}\n```\n```json\n{ADD}\n```", [ONE, ONE]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tools", "text", "content", "calls"),
    [
        ("hermes", f"<tool_call>\n{WEATHER}\n</tool_call>", None, [CITY]),
        ("hermes", f"Let me see.\n\n<tool_call>{WEATHER}</tool_call>\n<tool_call>\n{ADD}\n</tool_call>\n",
         "Let me see.", [CITY, ONE]),
        # A stray mark, as speculation likes to bring, is text; what follows it is read all the same.
        ("hermes", f"<tool_call> oh <tool_call>{ADD}</tool_call>", "<tool_call> oh", [ONE]),
        ("hermes", f"<tool_call>{ADD}{WEATHER}</tool_call> Done.", " Done.", [ONE, CITY]),
        ("hermes", f"<tool_call>{ADD}<tool_call>{ADD}", None, [ONE, ONE]),
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', None, [ONE]),
        ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', None, [ONE]),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1}, "id": 7, "x": {}}</tool_call>', None,
         [ONE]),
        ("hermes", '<tool_call>{"name": "add"}</tool_call>', None, [("add", {})]),
        ("hermes", '<tool_call>{"name": "add", "arguments": null}</tool_call>', None, [("add", {})]),
        ("hermes", '<tool_call>{"name": "new", "arguments": {}}</tool_call>', None, [("new", {})]),
        ("hermes", "<tool_call>{1: 2}</tool_call>", "<tool_call>{1: 2}</tool_call>", []),
        ("hermes", "a < b <tool", "a < b <tool", []),
        ("llama3", ADD, None, [ONE]),
        ("llama3", f"{ADD}; {WEATHER}\n", None, [ONE, CITY]),
        ("llama3", f"<|python_tag|>{ADD};{ADD}", None, [ONE, ONE]),
        ("llama3", f"Well. <|python_tag|>{ADD}", "Well.", [ONE]),
        ("llama3", '<|python_tag|>search.call(query="x")', 'search.call(query="x")', []),
        ("llama3", '{"name": "John", "arguments": "many"}', '{"name": "John", "arguments": "many"}', []),
        ("llama3", '{"type": "function", "name": "add", "parameters": {"a": 1}}', None, [ONE]),
        ("llama3", f"So: {ADD}", f"So: {ADD}", []),
        ("mistral", f"[TOOL_CALLS][{WEATHER}, {ADD}]", None, [CITY, ONE]),
        ("mistral", f"Well. [TOOL_CALLS] [{ADD}]", "Well.", [ONE]),
        ("mistral", '[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"city": "x"}', None,
         [ONE, ("weather", {"city": "x"})]),
        ("mistral", "[TOOL_CALLS] nothing", " nothing", []),
        ("mistral", f"{ADD} [x]", f"{ADD} [x]", []),
        ("json", ADD, None, [ONE]),
        ("json", f" [{ADD}, {WEATHER}]", None, [ONE, CITY]),
        ("json", f"```json\n{ADD}\n```\n", None, [ONE]),
        ("json", f"<tool_call>[{ADD}]</tool_call>", None, [ONE]),
        ("json", f"{ADD}\n{ADD}", None, [ONE, ONE]),
        ("json", '{"name": "nobody", "arguments": {}}', '{"name": "nobody", "arguments": {}}', []),
        ("json", "```python\nprint()\n```", "```python\nprint()\n```", []),
        ("json", '{"answer": 42}', '{"answer": 42}', []),
        ("json", f"{ADD} and that is it", " and that is it", [ONE]),
        # Whatever the notation: a whole text that is a call, bare or fenced, or a list of them.
        *((tools, text, None, calls) for tools in IN_TEXT for text, calls in BARE),
        *((tools, text, text, []) for tools in ("hermes", "mistral") for text in NOT_WHOLE),
        ("hermes", f"{ADD} or <tool_call>{ADD}</tool_call>", f"{ADD} or", [ONE]),
        ("llama3", f"```json\n{ADD}\n```\nThat is it.", f"```json\n{ADD}\n```\nThat is it.", []),
        ("required", f"[{ADD}, {WEATHER}]", None, [ONE, CITY]),
        (None, f"<tool_call>{ADD}</tool_call>", f"<tool_call>{ADD}</tool_call>", []),
    ],
)  # fmt: skip
def test_what_models_write(tools, text, content, calls):
    assert message(text, tools) == (content, None, calls)


@pytest.mark.parametrize("tools", IN_TEXT)
@pytest.mark.parametrize("text", [*(text for text, _ in BARE), *NOT_WHOLE])
@pytest.mark.parametrize("whole_calls", [False, True])
def test_a_stream_says_what_the_whole_does_wherever_it_is_cut(tools, text, whole_calls):
    reading = Reading(tools=tools, names=NAMES, whole_calls=whole_calls)
    whole = joined(told(reading, [text])[0])
    assert joined(told(reading, list(text))[0]) == whole
    for cut in range(1, len(text)):
        assert joined(told(reading, [text[:cut], text[cut:]])[0]) == whole


@pytest.mark.parametrize("tools", ["hermes", "llama3", "mistral", "json", "required", "named"])
def test_a_call_that_a_stop_string_cuts_off_is_text(tools):
    """Wherever that is; a stream with stop strings passes on whole calls only."""
    text = {"hermes": f"Hm. <tool_call>{WEATHER}</tool_call>", "mistral": f"[TOOL_CALLS][{WEATHER}]",
            "required": f"[{WEATHER}]", "named": WEATHER[33:-1]}.get(tools, WEATHER)  # fmt: skip
    reading = Reading(tools=tools, names=NAMES[:1], whole_calls=True)
    for cut in range(1, len(text) + 1):
        deltas, reader = told(reading, [text[:cut]])
        found = joined(deltas)
        assert joined(told(reading, list(text[:cut]))[0]) == found
        for call in found.get("tool_calls", []):
            assert json.loads(call["function"]["arguments"]) == CITY[1]
            # A closing tag that did not come whole is text, as everywhere.
            assert found.get("content", "Hm.").startswith("Hm.")
        if "tool_calls" not in found:
            texts = (text[:cut].rstrip(), text[:cut].removeprefix("[TOOL_CALLS]").rstrip())
            assert found.get("content", "").rstrip() in texts
            assert reader.finish_reason("stop") == "stop"
    assert joined(told(reading, [text])[0])["tool_calls"]


def test_a_call_that_broke_off_is_no_reason():
    """The model itself ended: what was streamed can't be taken back, and is not said to be a call."""
    reading = Reading(tools="hermes", names=NAMES)
    deltas, reader = told(reading, [f"<tool_call>{ADD}</tool_call><tool_call>{WEATHER[:-12]}"])
    assert len(joined(deltas)["tool_calls"]) == 2
    assert (reader.finish_reason("stop"), reader.finish_reason("length")) == ("stop", "length")


def test_only_one_call_where_no_more_are_wanted():
    assert message(f"[{ADD}, {WEATHER}]", "json", parallel=False) == (None, None, [ONE])


@pytest.mark.parametrize(
    ("text", "content", "thought"),
    [
        ("<think>\nHm.\n\nSo.\n</think>\n\nHello\n", "Hello\n", "Hm.\n\nSo."),
        ("<think>\n\n</think>\n\nHello", "Hello", None),
        ("\n<think>Hm", None, "Hm"),
        ("[THINK]Hm[/THINK]Hello", "Hello", "Hm"),
        ("Hello <think>x</think>", "Hello <think>x</think>", None),
        ("<thinking>x</thinking>", "<thinking>x</thinking>", None),
        ("<think>a <tool_call> b</think>c", "c", "a <tool_call> b"),
    ],
)
def test_thoughts(text, content, thought):
    assert message(text, "hermes", "think") == (content, thought, [])


def test_a_call_after_a_thought():
    text = f"<think>\nHm.\n</think>\n\n<tool_call>\n{ADD}\n</tool_call>"
    assert message(text, "hermes", "think") == (None, "Hm.", [ONE])


def test_arguments_come_as_they_are_written():
    """Not when they are whole: a long one would be waited for."""
    reader = ChoiceReader(Reading(tools="hermes", names=NAMES), "job", 0)
    deltas = [delta for letter in f"<tool_call>{WEATHER}</tool_call>" if (delta := reader.feed(letter))]
    assert len(deltas) > 40
    assert "id" in deltas[0]["tool_calls"][0]
    assert all("id" not in delta["tool_calls"][0] for delta in deltas[1:])


def test_ids_are_of_the_job_the_choice_and_the_place():
    reading = Reading(tools="hermes", names=NAMES)
    ids = set()
    for job, choice in (("a", 0), ("a", 1), ("b", 0)):
        reader = ChoiceReader(reading, job, choice)
        again = ChoiceReader(reading, job, choice)
        text = f"<tool_call>{ADD}</tool_call>" * 2
        first, second = (joined([each.feed(text)])["tool_calls"] for each in (reader, again))
        assert first == second
        ids |= {call["id"] for call in first}
    assert len(ids) == 6
    (call,) = joined([ChoiceReader(Reading(tools="mistral"), "a", 0).feed('[TOOL_CALLS]f{"a": 1}')])[
        "tool_calls"
    ]
    assert re.fullmatch("[a-z0-9]{9}", call["id"]), "Mistral's templates take nothing else"


@pytest.mark.parametrize(
    ("tools", "reason", "expected"),
    [
        ("hermes", "stop", "tool_calls"),
        ("hermes", "length", "length"),
        ("required", "stop", "tool_calls"),
        # OpenAI's: who names the function knows that it is called.
        ("named", "stop", "stop"),
    ],
)
def test_why_it_ended(tools, reason, expected):
    text = {"hermes": f"<tool_call>{ADD}</tool_call>", "required": f"[{ADD}]", "named": '{"a": 1}'}[tools]
    _, reader = told(Reading(tools=tools, names=["add"]), [text])
    assert reader.finish_reason(reason) == expected
    _, reader = told(Reading(tools=tools, names=["add"]), [""])
    assert reader.finish_reason("stop") == "stop"


def test_what_is_cut_off_says_what_there_was():
    reading = Reading(tools="required", names=NAMES)
    deltas, _ = told(reading, [f"[{WEATHER}"[:50]])
    (call,) = joined(deltas)["tool_calls"]
    assert call["function"]["arguments"] == WEATHER[33:49]
    deltas, _ = told(reading, ['[{"name": "wea'])
    assert joined(deltas) == {"content": '[{"name": "wea'}


def test_a_deep_one_is_no_call_rather_than_an_end():
    for depth in range(300, 1100, 7):
        text = '{"arguments": ' + "[" * depth + "]" * depth + ', "name": "add"}'
        content, _, calls = message(text, "json")
        assert content == text or calls


def test_long_texts_take_no_more_than_their_time():
    """What is held back is not read from its beginning with each letter."""
    reading = Reading(tools="json", reasoning="think", names=NAMES)
    reader = ChoiceReader(reading, "job", 0)
    text = '{"arguments": {"text": "' + "x" * 200_000 + '"}, "name": "add"}'
    deltas = [reader.feed(text[at : at + 8]) for at in range(0, len(text), 8)]
    assert (
        len(json.loads(joined([*deltas, reader.end()])["tool_calls"][0]["function"]["arguments"])["text"])
        == 200_000
    )


def test_special_tokens_that_must_stay():
    assert "[TOOL_CALLS]" in special_tokens(Reading(tools="mistral"))
    assert {"<tool_call>", "<think>"} <= set(special_tokens(Reading(tools="hermes", reasoning="think")))
    assert special_tokens(Reading(tools="named")) == []


@pytest.mark.parametrize(
    "reading",
    [*(Reading(tools=name, names=NAMES) for name in TOOL_PARSERS), Reading(reasoning="think")],
)
def test_blanks_take_no_more_than_their_time(reading):
    """An answer of many is some tokens' work for a model, and everybody's stream waits while one is read."""
    text = "<think>a" + 200_000 * " " + "x</think>b"
    reader = ChoiceReader(reading, "job", 0)
    begun_at = time.process_time()
    deltas = [reader.feed(text), reader.end()]
    assert time.process_time() - begun_at < 1
    assert len(json.dumps(joined(deltas))) > 200_000, "nothing is lost"
