"""Calls of tools, end to end: the ``openai`` package, a gateway, a worker that says what it is asked to."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from events import events_of

from pagefleet.api.chat.choice_reader import joined
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.gateway.openai.openapi import document
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.local.local_stack import WorkerProcess

CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Rain or sun", "parameters": CITY},
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "$id": "https://example.org/add.json",
            "properties": {"a": {"$ref": "#/$defs/number"}, "b": {"$ref": "#/$defs/number"}},
            "required": ["a", "b"],
            "$defs": {"number": {"type": "integer", "minimum": 0, "maximum": 9}},
        },
    },
}
TOOLS = [WEATHER, ADD]
NOTATIONS = ("hermes", "llama3", "mistral")
CHAT = "/v1/chat/completions"
PARIS = '{"name": "weather", "arguments": {"city": "Paris"}}'
SUM = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
WRITTEN = {
    "hermes": f"I look.\n\n<tool_call>\n{PARIS}\n</tool_call>\n<tool_call>\n{SUM}\n</tool_call>",
    "llama3": f"<|python_tag|>{PARIS}; {SUM}",
    "mistral": f"I look.[TOOL_CALLS][{PARIS}, {SUM}]",
    "json": f"[{PARIS}, {SUM}]",
}


def say(text):
    """A conversation whose answer is this text."""
    return [{"role": "user", "content": f"<recite>{text}</recite>"}]


@pytest.fixture(scope="module", autouse=True)
def models(null_stack, tmp_path_factory):
    """A model for each notation, beside ``null``, which has none of its own."""
    folder = tmp_path_factory.mktemp("notations")
    workers = [
        WorkerProcess(
            null_stack.redis_url,
            ["--model", name, "--backend", "null", "--null-step-time", "0.002", "--null-recites",
             "--speculate", "0", "--tool-parser", name, "--reasoning-parser",
             "think" if name == "hermes" else "auto"],
            log_file=folder / f"{name}.log",
        )
        for name in NOTATIONS
    ]  # fmt: skip
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.wait_ready(60)
        yield
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(60)
        store = JobStore(FleetSettings(redis_url=null_stack.redis_url))
        for name in NOTATIONS:
            store.remove_card(name)
        store.close_connections()


def calls_of(message):
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]


def gathered(chunks, choice=0):
    """Content, thoughts, calls and reason of a stream, as a client puts them together."""
    found = {"content": "", "reasoning_content": "", "calls": [], "reason": None}
    for chunk in chunks:
        for each in chunk.choices:
            if each.index != choice:
                continue
            found["reason"] = each.finish_reason or found["reason"]
            for name in ("content", "reasoning_content"):
                found[name] += getattr(each.delta, name, None) or ""
            for call in each.delta.tool_calls or ():
                if call.id is not None:
                    found["calls"].append([call.id, call.function.name, ""])
                    assert (call.index, call.type) == (len(found["calls"]) - 1, "function")
                found["calls"][call.index][2] += call.function.arguments or ""
    return found


@pytest.mark.parametrize(
    ("model", "content"), [("hermes", "I look."), ("llama3", None), ("mistral", "I look."), ("null", None)]
)
def test_calls_in_each_notation(ai, jobs, model, content):
    options = {
        "model": model,
        "messages": say(WRITTEN[model.replace("null", "json")]),
        "tools": TOOLS,
        "n": 2,
    }
    answer = ai.chat.completions.create(**options)
    for choice in answer.choices:
        assert (choice.message.content, choice.finish_reason) == (content, "tool_calls")
        assert calls_of(choice.message) == [("weather", {"city": "Paris"}), ("add", {"a": 1, "b": 2})]
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls]
    assert len(set(ids)) == 4
    streamed = list(ai.chat.completions.create(**options, stream=True))
    for choice in range(2):
        found = gathered(streamed, choice)
        assert (found["content"], found["reason"]) == (content or "", "tool_calls")
        assert [(name, json.loads(text)) for _, name, text in found["calls"]] == calls_of(
            answer.choices[0].message
        )
    num_pieces = sum(bool(chunk.choices[0].delta.tool_calls) for chunk in streamed)
    # How many tokens an event has is the worker's and its machine's business.
    assert num_pieces > 4, "they come as they are written"
    request = jobs.read(answer.id, with_log=False).request()
    assert ("[TOOL_CALLS]" in request.sampling.kept_special_tokens) is (model == "mistral")
    # It is what the model wrote that is counted, and its tokens that are shown.
    assert answer.usage.completion_tokens == 2 * (len(WRITTEN[model.replace("null", "json")]) + 1)


@pytest.mark.parametrize("model", [*NOTATIONS, "null"])
def test_the_python_client_reads_the_same_message(ai, fleet, model):
    """By its own call, and of the gateway's job."""
    messages = say("<think>Hm.</think>" * (model == "hermes") + WRITTEN[model.replace("null", "json")])
    answer = ai.chat.completions.create(model=model, messages=messages, tools=TOOLS)
    wanted = answer.choices[0].message
    attached = fleet.attach(answer.id).result()
    own = fleet.chat(messages, model=model, tools=TOOLS, max_tokens=400).result()
    for result in (attached, own):
        assert (result.content, result.finish_reason) == (wanted.content, "tool_calls")
        assert result.reasoning == getattr(wanted, "reasoning_content", None)
        assert calls_of(result.message) == calls_of(wanted)
    assert [call.id for call in attached.tool_calls] == [call.id for call in wanted.tool_calls]


def test_the_same_from_any_gateway_after_any_event(start_gateway, gateway, http):
    """What the first events said and what another gateway says after them is the whole."""
    text = f"<think>\nHm.\n</think>\n\n{WRITTEN['hermes']} <tool"
    body = {"model": "hermes", "messages": say(text), "tools": TOOLS, "stream": True}
    body["stream_options"] = {"include_ids": True}
    with http.stream("POST", CHAT, json=body) as reply:
        events = answers(reply)
    whole = told(events)
    job_id = events[0].data["id"]
    shown = http.get(f"/v1/jobs/{job_id}").json()["result"]["choices"][0]
    assert shown["message"]["tool_calls"] == whole["tool_calls"]
    assert (shown["message"]["content"], shown["message"]["reasoning_content"]) == ("I look. <tool", "Hm.")
    assert (whole["content"], whole["reasoning_content"]) == ("I look. <tool", "Hm.")
    assert events[-1].id == f"{len(text) + 1}e", "the end had something to say, and its id says so"
    other = start_gateway()
    with httpx.Client(base_url=other.url, timeout=30) as client:
        for cut, event in enumerate(events[:: len(events) // 12] + events[-3:]):
            headers = {"Last-Event-ID": event.id}
            with client.stream("GET", f"/v1/jobs/{job_id}/stream", headers=headers) as reply:
                rest = answers(reply)
            had = events[: events.index(event) + 1]
            assert told([*had, *rest]) == whole, (cut, event.id)
            assert rest[-1].data["choices"][0]["finish_reason"] == "tool_calls"


def answers(reply):
    return [event for event in events_of(reply.iter_lines()) if isinstance(event.data, dict)]


def told(events):
    """The message that the events' deltas make."""
    return joined(choice["delta"] for event in events for choice in event.data["choices"])


@pytest.mark.parametrize(
    ("model", "seed", "max_tokens"), [("null", 1, 120), ("null", 2, 120), ("hermes", 2, 400)]
)
def test_a_call_that_is_demanded_always_parses(ai, model, seed, max_tokens):
    """The model makes its tokens up: it is the grammar that makes them a call, which ends in time."""
    messages = [{"role": "user", "content": "Hi"}]
    options = {"model": model, "messages": messages, "tools": TOOLS, "seed": seed, "max_tokens": max_tokens}
    answer = ai.chat.completions.create(**options, tool_choice="required").choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    calls = calls_of(answer.message)
    assert calls
    for name, arguments in calls:
        check(name, arguments)
    found = gathered(ai.chat.completions.create(**options, tool_choice="required", stream=True))
    assert [(name, json.loads(text)) for _, name, text in found["calls"]] == calls
    named = {"type": "function", "function": {"name": "add"}}
    answer = ai.chat.completions.create(**options, tool_choice=named).choices[0]
    (call,) = calls_of(answer.message)
    check(*call)
    assert (call[0], answer.finish_reason) == ("add", "stop"), "OpenAI's: who named it knows"


def check(name, arguments):
    if name == "weather":
        assert set(arguments) == {"city"}
        assert len(arguments["city"]) <= 9
    else:
        assert set(arguments) == {"a", "b"}
        assert all(0 <= value <= 9 for value in arguments.values())


def test_one_call_and_no_more(ai):
    options = {"model": "hermes", "tools": TOOLS, "parallel_tool_calls": False}
    answer = ai.chat.completions.create(messages=say(WRITTEN["hermes"]), **options)
    assert calls_of(answer.choices[0].message) == [("weather", {"city": "Paris"})]
    wanted = say(WRITTEN["json"])
    answer = ai.chat.completions.create(messages=wanted, **options, tool_choice="required", max_tokens=400)
    assert calls_of(answer.choices[0].message) == [("weather", {"city": "Paris"})]
    assert answer.usage.completion_tokens == len(f"[{PARIS}]"), "the second is not even written"


def test_none_is_none(ai):
    """The model hears of no tools, and what it writes all the same is text."""
    options = {"model": "hermes", "messages": say(WRITTEN["hermes"])}
    without = ai.chat.completions.create(**options)
    answer = ai.chat.completions.create(**options, tools=TOOLS, tool_choice="none")
    assert (answer.choices[0].message.content, answer.choices[0].message.tool_calls) == (
        WRITTEN["hermes"],
        None,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == without.usage.prompt_tokens


def test_tools_and_turns_reach_the_model(ai):
    """In its template's own way, or in words; counted in tokens, of which each letter is one."""
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    turns = [
        *say("3"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
    ]
    for model in ("null", "hermes"):
        counts = [
            ai.chat.completions.create(
                model=model, messages=messages, max_tokens=1, **options
            ).usage.prompt_tokens
            for messages, options in ((say("3"), {}), (say("3"), {"tools": TOOLS}), (turns, {"tools": TOOLS}))
        ]
        assert counts[1] - counts[0] > len(json.dumps(TOOLS)) * 0.8
        assert counts[2] - counts[1] > len("add 1 2 assistant 3 tool")


def test_variables_reach_the_template_and_a_thought_that_it_opened_is_one(ai, http):
    """As Qwen3's and DeepSeek's: the tag stands in the prompt, and the text begins within it."""
    opened = {"chat_template_kwargs": {"opening": "<think>\n"}}
    options = {"model": "hermes", "messages": say("Hm.\n</think>\n\nHello"), "extra_body": opened}
    (choice,) = ai.chat.completions.create(**options).choices
    assert (choice.message.content, choice.message.reasoning_content) == ("Hello", "Hm.")
    found = gathered(ai.chat.completions.create(**options, stream=True))
    assert (found["content"], found["reasoning_content"], found["reason"]) == ("Hello", "Hm.", "stop")
    # What is cut off in mid-thought has no content.
    (choice,) = ai.chat.completions.create(**options, max_tokens=2).choices
    assert (choice.message.content, choice.message.reasoning_content) == (None, "Hm")
    # Without the tag it is an answer like any other.
    (choice,) = ai.chat.completions.create(model="hermes", messages=say("Hello")).choices
    assert (choice.message.content, hasattr(choice.message, "reasoning_content")) == ("Hello", False)
    # What must have a form is not thought about: the worker closes the tag.
    formed = {"response_format": {"type": "json_object"}, "messages": say('{"a": 1}'), "max_tokens": 99}
    (choice,) = ai.chat.completions.create(**{**options, **formed}).choices
    assert (choice.message.content, hasattr(choice.message, "reasoning_content")) == ('{"a": 1}', False)


def test_thoughts_of_earlier_turns_are_taken(http):
    turn = {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}
    body = {"model": "hermes", "messages": [turn, *say("Hi")]}
    reply = http.post(CHAT, json=body)
    assert "x-pagefleet-ignored" not in reply.headers
    assert reply.json()["choices"][0]["message"]["content"] == "Hi"
    plain = http.post(CHAT, json={**body, "messages": [{"role": "assistant", "content": "4"}, *say("Hi")]})
    assert reply.json()["usage"]["prompt_tokens"] > plain.json()["usage"]["prompt_tokens"]


def test_logprobs_stay_with_their_tokens(ai):
    options = {"model": "hermes", "messages": say(WRITTEN["hermes"]), "tools": TOOLS, "logprobs": True}
    whole = ai.chat.completions.create(**options).choices[0].logprobs.content
    assert "".join(each.token for each in whole).startswith(WRITTEN["hermes"])
    streamed = [
        each
        for chunk in ai.chat.completions.create(**options, stream=True)
        for each in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else ())
    ]
    assert streamed == whole


def test_the_openai_package_runs_the_stream_itself(ai):
    """Its own helper, which puts calls together and checks them against a strict schema."""
    strict = {**CITY, "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "weather", "strict": True, "parameters": strict}}
    text = f"<tool_call>{PARIS}</tool_call>"
    with ai.chat.completions.stream(model="hermes", messages=say(text), tools=[tool]) as stream:
        kinds = {event.type for event in stream}
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.delta" in kinds
    assert (call.function.name, call.function.parsed_arguments) == ("weather", {"city": "Paris"})


def tools_with(**parameters):
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


F = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OBJECT = {"type": "json_object"}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [{**F, "type": "custom"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [F, F]}, "tools[1].function.name", "invalid_value"),
        ({"tools": [{**F, "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        ({"tools": tools_with(type="string")}, "tools[0].function.parameters", "invalid_value"),
        ({"tools": tools_with(properties=[])}, "tools[0].function.parameters.properties", "invalid_value"),
        ({"tools": [F] * 129}, "tools", "invalid_value"),
        ({"tools": tools_with(properties={"a": {"type": "?"}}), "tool_choice": "required"}, "tools",
         "invalid_value"),
        ({"tools": tools_with(properties={"a": {"not": {}}}), "tool_choice": F}, "tools", "invalid_value"),
        ({"tools": [F], "tool_choice": "always"}, "tool_choice", "invalid_value"),
        ({"tools": [F], "tool_choice": 1}, "tool_choice", "invalid_type"),
        ({"tools": [F], "tool_choice": {"type": "function"}}, "tool_choice.function",
         "missing_required_parameter"),
        ({"tools": [F], "tool_choice": {"type": "function", "function": {"name": "g"}}},
         "tool_choice.function.name", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": F, "tools": []}, "tool_choice", "invalid_value"),
        ({"tools": [F], "structured_outputs": {"regex": "a"}}, "structured_outputs", "invalid_value"),
        ({"tools": [F], "guided_choice": ["a"]}, "guided_choice", "invalid_value"),
        ({"tools": [F], "response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
         "response_format", "invalid_value"),
        ({"tools": [F], "structured_outputs": {"regex": "a"}, "tool_choice": F}, "structured_outputs",
         "invalid_value"),
        ({"tools": [F], "guided_regex": "a", "response_format": {"type": "text"}, "tool_choice": F},
         "guided_regex", "invalid_value"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"function_call": "auto"}, "function_call", "unsupported_parameter"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "invalid_type"),
        ({"messages": [{"role": "tool", "content": "1"}]}, "messages[0].tool_call_id",
         "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": "1", "tool_call_id": "1"}]}, "messages[0].tool_call_id",
         "invalid_value"),
        ({"messages": [{"role": "user", "tool_calls": [CALL]}]}, "messages[0].tool_calls", "invalid_value"),
        ({"messages": [{"role": "assistant", "tool_calls": [{**CALL, "type": "x"}]}]},
         "messages[0].tool_calls[0].type", "unsupported_parameter"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
         "messages[0].tool_calls[0].function", "missing_required_parameter"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs", "invalid_type"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools", "invalid_value"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(http, fields, param, code):
    body = {"model": "null", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40, **fields}
    reply = http.post(CHAT, json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error["message"]
    assert error["type"] == "invalid_request_error"
    assert http.post(CHAT, json={**body, "stream": True}).json() == reply.json()


def test_a_name_counts_where_the_choice_is_one(http):
    body = {"model": "null", "messages": say(f"[{SUM}]"), "tools": TOOLS, "max_tokens": 99}
    reply = http.post(
        CHAT, json={**body, "tool_choice": {"type": "required", "function": {"name": "nobody"}}}
    )
    (call,) = reply.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "add"


ANSWER = {
    "type": "object",
    "properties": {"answer": {"$ref": "#/$defs/text"}},
    "required": ["answer"],
    "$defs": {"text": {"type": "string", "maxLength": 9}},
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": ANSWER}}


@pytest.mark.parametrize("model", [*NOTATIONS, "null"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_format_beside_tools_is_a_call_or_an_answer_of_this_form(ai, model, stream):
    """As openai-agents (`output_type` and tools) and the Vercel AI SDK (`output` and tools) ask for it."""
    seen = set()
    for text in (PARIS, f"[{PARIS}, {SUM}]", '{"answer": "42"}', "No JSON at all"):
        options = {"model": model, "messages": say(text), "tools": TOOLS, "max_tokens": 400, "seed": 3}
        answer = ai.chat.completions.create(**options, response_format=FORMAT, stream=stream)
        if stream:
            found = gathered(answer)
            calls = [(name, json.loads(arguments)) for _, name, arguments in found["calls"]]
            content, reason = found["content"] or None, found["reason"]
        else:
            (choice,) = answer.choices
            calls, content, reason = calls_of(choice.message), choice.message.content, choice.finish_reason
        if text == PARIS:
            assert (calls, content, reason) == ([("weather", {"city": "Paris"})], None, "tool_calls")
        elif text[0] == "[":
            assert [name for name, _ in calls] == ["weather", "add"]
        elif text[0] == "{":
            assert (calls, json.loads(content), reason) == ([], {"answer": "42"}, "stop")
        elif reason != "length":
            assert [check(*call) for call in calls] or set(json.loads(content)) == {"answer"}
        seen.add(reason)
    assert seen >= {"tool_calls", "stop"}


def test_a_format_of_any_object_beside_tools(ai):
    options = {"model": "hermes", "tools": TOOLS, "response_format": OBJECT, "max_tokens": 99}
    (choice,) = ai.chat.completions.create(messages=say(PARIS), **options).choices
    assert (calls_of(choice.message), choice.finish_reason) == (
        [("weather", {"city": "Paris"})],
        "tool_calls",
    )
    (choice,) = ai.chat.completions.create(messages=say('{"a": 1}'), **options).choices
    assert (choice.message.content, choice.finish_reason) == ('{"a": 1}', "stop")


@pytest.mark.parametrize("model", [*NOTATIONS, "null"])
def test_a_stop_string_within_a_call_leaves_text(ai, model):
    text = WRITTEN[model.replace("null", "json")]
    options = {"model": model, "messages": say(text), "tools": TOOLS, "stop": ["Par", '"b"']}
    (choice,) = ai.chat.completions.create(**options).choices
    assert (choice.message.tool_calls, choice.finish_reason) == (None, "stop")
    assert choice.message.content == text[: text.index("Par")].removeprefix("<|python_tag|>")
    found = gathered(ai.chat.completions.create(**options, stream=True))
    assert (found["content"], found["calls"], found["reason"]) == (choice.message.content, [], "stop")
    # The first call is complete: it counts, and what is left of the second is text.
    (choice,) = ai.chat.completions.create(**{**options, "stop": ['"b"']}).choices
    assert calls_of(choice.message) == [("weather", {"city": "Paris"})]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content.endswith('"a": 1, ')


@pytest.mark.parametrize("model", ["hermes", "mistral", "llama3"])
@pytest.mark.parametrize("text", [PARIS, f"```json\n{PARIS}\n```", f"[{PARIS}]"])
def test_a_text_that_is_a_call_is_one_without_tags(ai, model, text):
    options = {"model": model, "messages": say(text), "tools": TOOLS}
    (choice,) = ai.chat.completions.create(**options).choices
    assert (calls_of(choice.message), choice.message.content) == ([("weather", {"city": "Paris"})], None)
    found = gathered(ai.chat.completions.create(**options, stream=True))
    assert (found["content"], found["reason"]) == ("", "tool_calls")
    assert [(name, json.loads(arguments)) for _, name, arguments in found["calls"]] == calls_of(
        choice.message
    )


def test_a_tool_that_cannot_be_kept_is_named_and_an_unknown_format_is_an_annotation(http):
    dated = tools_with(properties={"day": {"type": "string", "format": "day-of-week", "maxLength": 3}})
    broken = {
        "type": "function",
        "function": {"name": "g/x", "parameters": {"properties": {"a": {"not": {}}}}},
    }
    body = {"model": "null", "messages": say("[{}]"), "max_tokens": 99, "tool_choice": "required"}
    reply = http.post(CHAT, json={**body, "tools": dated})
    assert reply.status_code == 200, reply.text
    reply = http.post(CHAT, json={**body, "tools": [*dated, broken]})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tools")
    assert "#/$defs/g~1x/properties/a" in reply.json()["error"]["message"]


def test_a_format_is_of_words(http):
    """Where a call is demanded nothing is said in words; where none may come the format is kept."""
    body = {"model": "null", "messages": say(""), "tools": [ADD], "response_format": OBJECT, "max_tokens": 99}
    (choice,) = http.post(CHAT, json={**body, "tool_choice": "required"}).json()["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "add"
    (choice,) = http.post(CHAT, json={**body, "tool_choice": "none"}).json()["choices"]
    assert choice["message"]["content"].startswith("{")


def test_no_tools_are_none(ai):
    for options in ({"tools": []}, {"tool_choice": "none"}, {"tools": [], "tool_choice": "none"}):
        answer = ai.chat.completions.create(model="null", messages=say(PARIS), **options)
        assert answer.choices[0].message.content == PARIS


async def test_an_agents_loop(gateway):
    """What a client does with a call: run it, answer it, ask again."""
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as ai:
        messages = say(f"<tool_call>{SUM}</tool_call>")
        answer = await ai.chat.completions.create(model="hermes", messages=messages, tools=TOOLS)
        message = answer.choices[0].message
        messages.append(message)
        for call in message.tool_calls:
            total = sum(json.loads(call.function.arguments).values())
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(total)})
        messages += say("It is 3.")
        answer = await ai.chat.completions.create(model="hermes", messages=messages, tools=TOOLS)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("It is 3.", "stop")


def test_openapi_describes_them():
    schemas = document()["components"]["schemas"]
    fields = schemas["ChatBody"]["properties"]
    assert {"tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs"} <= fields.keys()
    assert schemas["Message"]["properties"].keys() >= {"tool_calls", "tool_call_id", "reasoning_content"}
    assert schemas["Function"]["required"] == ["name"]
    for name in ("tools", "tool_calls"):
        place = fields if name == "tools" else schemas["Message"]["properties"]
        (items,) = [each["items"]["$ref"] for each in place[name]["anyOf"] if "items" in each]
        assert items.rpartition("/")[2] in schemas
