"""How a model writes calls and thoughts is found from its template, and told on its card."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from pagefleet.api.chat.chat_template import reasoning_parser_of, tool_parser_of
from pagefleet.api.chat.conversation import template_inputs
from pagefleet.api.chat.reasoning import (
    REASONING_PARSERS,
    ReasoningParserName,
    closing_of,
    open_tag_of,
)
from pagefleet.api.chat.tool_parsers import MODEL_PARSERS, ToolParserName
from pagefleet.api.contract.chat_message import ChatMessage, Tool
from pagefleet.api.contract.errors import InvalidRequest
from pagefleet.api.contract.messages import GenerateRequest, ModelCard
from pagefleet.api.contract.model_cards import CardIndex
from pagefleet.api.protocol.prepared import prepare
from pagefleet.engine import EngineConfig, LLMEngine, NullOptions
from pagefleet.engine.errors import InvalidRequestError
from pagefleet.engine.text.tokenizer import ByteTokenizer
from pagefleet.workers.prompting.model_card import make_card
from pagefleet.workers.prompting.prompt import echo_text, engine_request, tokenize
from pagefleet.workers.settings import WorkerSettings

QWEN = "{%- if tools %}... within <tool_call></tool_call> XML tags{% endif %}<think>\n\n</think>"
CODER = "{% if tools %}<tool_call>\n<function=example_function_name>{% endif %}"
MISTRAL = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]"
LLAMA31 = '{% if builtin_tools or tools %}<|python_tag|>{% endif %}{"name": function name, ...}'
LLAMA32 = '{% if tools %}{"name": function name, "parameters": dictionary of argument name and its value}'
HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        (QWEN, "hermes", "think"), (CODER, "json", None), (MISTRAL, "mistral", None),
        (LLAMA31, "llama3", None), (LLAMA32, "llama3", None),
        ("{{ messages }}<tool_call>", "json", None), (None, "json", None),
        ("[THINK][/THINK]", "json", "think"),
    ],
)  # fmt: skip
def test_a_template_shows_it(template, tools, reasoning):
    assert (tool_parser_of(template), reasoning_parser_of(template)) == (tools, reasoning)


def test_the_settings_offer_each_parser_that_there_is():
    assert sorted(get_args(ToolParserName)) == sorted(MODEL_PARSERS)
    assert sorted(get_args(ReasoningParserName)) == sorted(REASONING_PARSERS)


@pytest.fixture(scope="module")
def engine():
    return LLMEngine.from_config(EngineConfig(model="null", backend="null", null=NullOptions(step_time_s=0)))


def card_of(engine, **settings):
    return make_card(WorkerSettings(model="null", backend="null", **settings), engine)


def test_the_card_says_it_and_settings_go_first(engine):
    card = card_of(engine)
    assert (card.tool_parser, card.reasoning_parser) == ("json", None)
    card = card_of(engine, tool_parser="hermes", reasoning_parser="think")
    assert (card.tool_parser, card.reasoning_parser) == ("hermes", "think")
    assert card_of(engine, reasoning_parser="none").reasoning_parser is None


def test_what_an_older_version_wrote_can_be_read(engine):
    """Cards and jobs that know nothing of tools; and a job without any is written as it was."""
    card = card_of(engine)
    old = card.model_dump(exclude={"tool_parser", "reasoning_parser"})
    assert ModelCard.model_validate(old).tool_parser is None
    request = GenerateRequest.model_validate({"model": "null", "messages": HI})
    assert (request.tools, request.reading, request.chat_template_kwargs) == (None, None, None)
    written = json.loads(request.model_dump_json(exclude_defaults=True))
    assert written == {"model": "null", "messages": HI}


MESSAGES = [
    ChatMessage(role="user", content="Hi"),
    ChatMessage.model_validate(
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "call_123456789", "function": {"name": "f", "arguments": '{"a": "x"}'}},
                {"id": "123456789", "function": {"name": "f", "arguments": "{broken"}},
            ],
        }
    ),
    ChatMessage(role="tool", content="4", tool_call_id="call_123456789"),
]
TOLD = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_a_template_that_knows_tools_gets_them():
    ((messages, tools),) = template_inputs(MESSAGES, [Tool.model_validate(TOOL)], "hermes")
    assert tools == [TOLD]
    first, second = messages[1]["tool_calls"]
    # As an object, which templates write as JSON; what is none stays a text.
    assert (first["function"]["arguments"], second["function"]["arguments"]) == ({"a": "x"}, "{broken")
    assert (first["id"], messages[2]["tool_call_id"]) == ("call_123456789", "call_123456789")
    assert template_inputs(MESSAGES, None, "hermes")[0].tools is None


def test_mistrals_ids_have_nine_characters():
    ((messages, _),) = template_inputs(MESSAGES, None, "mistral")
    first, second = (call["id"] for call in messages[1]["tool_calls"])
    assert (len(first), first.isalnum(), second) == (9, True, "123456789")
    assert first == messages[2]["tool_call_id"]


@pytest.mark.parametrize("parser", ["json", None])
def test_any_other_template_is_told_in_words(parser):
    later = [*MESSAGES, ChatMessage(role="tool", content="5", tool_call_id="123456789"), ChatMessage(**HI[0])]
    (messages, tools), without_system = template_inputs(later, [Tool.model_validate(TOOL)], parser)
    assert tools is None
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert json.dumps(TOOL["function"]) in messages[0]["content"]
    assert messages[2]["content"].startswith('[{"name": "f", "arguments": {"a": "x"}}, ')
    # What was returned and said in a row is one turn.
    assert messages[3]["content"].endswith("returned: 4\n\nThe function returned: 5\n\nHi")
    assert all(set(message) == {"role", "content"} for message in messages)
    assert without_system.messages[0] == {"role": "user", "content": f"{messages[0]['content']}\n\nHi"}
    assert without_system.messages[1:] == messages[2:]
    assert template_inputs(later, None, parser) == [(messages[1:], None)]
    system = ChatMessage(role="system", content="Be kind.")
    (((message,), _),) = template_inputs([system], [Tool.model_validate(TOOL)], parser)
    assert message["content"].startswith("Be kind.\n\n")


class NoSystem(ByteTokenizer):
    """Whose template refuses system messages, as Gemma's."""

    def apply_chat_template(self, messages, tools=None, variables=None):
        if messages[0]["role"] == "system":
            raise InvalidRequestError("no system messages", "chat_template", "messages")
        return super().apply_chat_template(messages, tools, variables)


def test_a_template_without_system_messages_is_told_by_the_user():
    fields = {"model": "m", "messages": HI, "tools": [TOOL]}
    token_ids = tokenize(GenerateRequest.model_validate(fields), NoSystem(), "json")
    assert '"name": "f"' in NoSystem().decode(token_ids)
    fields["messages"] = [{"role": "system", "content": "x"}]
    with pytest.raises(InvalidRequestError, match="no system"):
        tokenize(GenerateRequest.model_validate(fields), NoSystem(), "json")


def prompt_of(engine, card, **fields):
    prepared = prepare(CardIndex([card]), None, {"messages": HI, **fields}, seed=1)
    request = engine_request("a", prepared.request, [], engine, card)
    prompt = engine.tokenizer.decode(list(request.prompt_token_ids))
    return prompt, echo_text(prepared.request, request, engine.tokenizer)


def test_a_thought_that_the_template_opened_begins_the_answer(engine):
    card = card_of(engine, reasoning_parser="think")
    opened = {"chat_template_kwargs": {"opening": "<think>\n"}}
    read = {"reading": {"reasoning": "think"}}
    prompt, echo = prompt_of(engine, card, **opened, **read)
    assert (prompt[-8:], echo) == ("<think>\n", "<think>\n")
    # Who does not read it as a thought gets the text as the model wrote it.
    assert prompt_of(engine, card, **opened)[1] == ""
    assert prompt_of(engine, card, **read)[1] == ""
    # What must have a form from its first character on begins after the thought.
    prompt, echo = prompt_of(engine, card, **opened, **read, structured_outputs={"json_object": True})
    assert (prompt[-19:], echo) == ("<think>\n\n</think>\n\n"[-19:], "")


def test_what_stands_open_at_the_end():
    assert open_tag_of("...<think>\n") == "<think>\n"
    assert open_tag_of("[THINK]") == "[THINK]"
    assert open_tag_of("<think>\n\n</think>\n\n") == open_tag_of("<think> so") == ""
    assert closing_of("[THINK]") == "\n[/THINK]\n\n"


def test_only_messages_have_tools(engine):
    for name, value in (
        ("tools", [TOOL]),
        ("chat_template_kwargs", {"a": 1}),
        ("reading", {"tools": "json"}),
    ):
        with pytest.raises(InvalidRequest) as raised:
            prepare(CardIndex([card_of(engine)]), None, {"prompt": "Hi", name: value}, seed=1)
        assert raised.value.param == name
