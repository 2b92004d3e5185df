"""chat() with tools: a fake and a real fleet read the same text as the same message."""

from __future__ import annotations

import json
import re

import pytest

from pagefleet.api import AsyncFleetClient, ChatMessage, InvalidRequest, UnknownModel
from pagefleet.api.testing import AsyncInMemoryFleet, InMemoryFleet, fake_card

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["a"],
        },
    },
}
CALL = '{"name": "add", "arguments": {"a": 1}}'
TURN = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def say(text):
    return [{"role": "user", "content": f"<recite>{text}</recite>"}]


def text_part(text):
    return {"type": "text", "text": text}


def recite(request):
    """As the null backend with --null-recites."""
    return re.findall("<recite>(.*?)</recite>", request.messages[-1].content, re.DOTALL)[-1]


@pytest.fixture(params=["fake", "asynchronous fake", "real"])
def any_fleet(request, blocking):
    if request.param == "fake":
        return InMemoryFleet(recite, models=[fake_card("null")])
    if request.param == "asynchronous fake":
        return blocking(AsyncInMemoryFleet(recite, models=[fake_card("null")]))
    return request.getfixturevalue("fleet")


def calls_of(result):
    return [(call.function.name, json.loads(call.function.arguments)) for call in result.tool_calls]


def test_a_call_is_parsed(any_fleet):
    stream = any_fleet.chat(say(f"[{CALL}, {CALL}]"), tools=[ADD], max_tokens=99, n=2)
    result = stream.result()
    for choice in result.choices:
        assert calls_of(choice) == [("add", {"a": 1})] * 2
        assert (choice.content, choice.finish_reason) == (None, "tool_calls")
        assert choice.text == f"[{CALL}, {CALL}]"
    assert len({call.id for choice in result.choices for call in choice.tool_calls}) == 4
    assert (result.tool_calls, result.reasoning) == (result.choices[0].tool_calls, None)
    # Whoever reads the job reads the same message.
    assert any_fleet.attach(stream.job_id).result().choices == result.choices


def test_the_message_continues_the_conversation(any_fleet):
    conversation = say(CALL)
    message = any_fleet.chat(conversation, tools=[ADD], max_tokens=99).result().message
    assert isinstance(message, ChatMessage)
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "2"}
    answer = any_fleet.chat([*conversation, message, result, *say("It is 2.")], tools=[ADD]).result()
    assert (answer.content, answer.tool_calls, answer.finish_reason) == ("It is 2.", [], "stop")


def test_one_call_and_no_more(any_fleet):
    result = any_fleet.chat(
        say(f"[{CALL}, {CALL}]"), tools=[ADD], parallel_tool_calls=False, max_tokens=99
    ).result()
    assert calls_of(result) == [("add", {"a": 1})]


def test_without_tools_a_call_is_text(any_fleet):
    for options in ({}, {"tools": [ADD], "tool_choice": "none"}, {"tools": []}):
        result = any_fleet.chat(say(CALL), max_tokens=99, **options).result()
        assert (result.content, result.tool_calls, result.finish_reason) == (CALL, [], "stop")


def test_a_demanded_call(any_fleet):
    named = {"type": "function", "function": {"name": "add"}}
    result = any_fleet.chat(say('{"a": 1}'), tools=[ADD], tool_choice=named, max_tokens=99).result()
    assert (calls_of(result), result.finish_reason) == ([("add", {"a": 1})], "stop")
    result = any_fleet.chat(say(f"[{CALL}]"), tools=[ADD], tool_choice="required", max_tokens=99).result()
    assert (calls_of(result), result.finish_reason) == ([("add", {"a": 1})], "tool_calls")


def test_messages_as_openai_has_them(any_fleet):
    """Content in parts, or none; fields that are None."""
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [TURN], "refusal": None},
        {"role": "tool", "tool_call_id": "call_1", "content": [text_part("2")]},
        {"role": "user", "content": [text_part("<recite>"), text_part("3</recite>")]},
    ]
    assert any_fleet.chat(messages).result().content == "3"
    assert any_fleet.tokenize(messages=messages).count >= 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{**ADD, "type": "custom"}]}, "tools.0.type"),
        ({"tools": [ADD, ADD]}, "tools.1.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [ADD], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": 1}, "tool_choice"),
        ({"tools": [ADD], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tools": [ADD], "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"messages": [{"role": "tool", "content": "1"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "tool_calls": [TURN]}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": "Hi"}, "messages"),
    ],
)
def test_a_wrong_field_is_named(any_fleet, fields, param):
    with pytest.raises(InvalidRequest) as raised:
        any_fleet.chat(**{"messages": say("x"), **fields})
    assert raised.value.param == param
    assert raised.value.message.startswith(f"{param}: ")


def test_reasoning_is_separate_from_content():
    card = fake_card(tool_parser="hermes", reasoning_parser="think")
    text = f"<think>Hm.</think>I add. <tool_call>{CALL}</tool_call>"
    result = InMemoryFleet(lambda request: text, models=[card]).chat(say(""), tools=[ADD]).result()
    assert (result.reasoning, result.content) == ("Hm.", "I add.")
    assert calls_of(result) == [("add", {"a": 1})]
    assert (result.text, result.message.reasoning_content) == (text, "Hm.")


async def test_the_async_client_does_the_same(null_stack):
    async with AsyncFleetClient(redis_url=null_stack.redis_url) as fleet:
        stream = await fleet.chat(say(CALL), tools=[ADD], max_tokens=99)
        assert calls_of(await stream.result()) == [("add", {"a": 1})]
        with pytest.raises(InvalidRequest):
            await fleet.chat(say(CALL), tools=[ADD, ADD])


@pytest.mark.parametrize("wrong", [{"model": 3}, {"model": "c", "temperature": -5}, {"temperature": -5}])
async def test_a_wrong_field_is_named_before_an_unknown_model(wrong):
    cards, param = [fake_card("a"), fake_card("b")], list(wrong)[-1]
    with pytest.raises(InvalidRequest) as raised:
        InMemoryFleet(models=cards).chat([{"role": "user", "content": "Hi"}], **wrong)
    with pytest.raises(InvalidRequest) as raised_async:
        await AsyncInMemoryFleet(models=cards).chat([{"role": "user", "content": "Hi"}], **wrong)
    for error in (raised.value, raised_async.value):
        assert error.param == param
        assert not isinstance(error, UnknownModel)
