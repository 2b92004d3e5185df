"""``POST /v1/chat/completions``."""

from __future__ import annotations

import json
from typing import Any, Final

from ops.compatibility import shared
from ops.compatibility.probe import SEED, TEXT, Endpoint, Probe, check, ignores, reaches, refuses

_HI: Final = {"role": "user", "content": "Hi"}
_X: Final = {"type": "object", "properties": {"x": {"const": 5}}, "required": ["x"]}
_FUNCTION: Final = {"name": "f", "description": "It", "parameters": _X, "strict": True}
_TOOL: Final = {"type": "function", "function": _FUNCTION}


def _message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{**_HI, **fields}]}


def _ignored(name: str, value: Any, words: str = "ignored") -> Probe:
    return Probe(name, "no", {name: value}, ignores(name), words)


def _called(**fields: Any) -> dict[str, Any]:
    """Return messages with a call and its result."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 5}'}} | fields
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"messages": [_HI, asked, {"role": "tool", "content": "4", "tool_call_id": "call_1"}]}


def _call(answer: Any) -> Any:
    return answer.job.messages[1].tool_calls[0]


def _tooled(**fields: Any) -> dict[str, Any]:
    return {"tools": [_TOOL], "max_tokens": 200, **fields}


def _function_of(answer: Any) -> Any:
    return answer.job.model_dump()["tools"][0]["function"]


def _named(answer: Any) -> Any:
    return answer.choices[0]["message"]["tool_calls"][0]["function"]["name"]


def _arguments(answer: Any) -> Any:
    return answer.choices[0]["message"]["tool_calls"][0]["function"]["arguments"]


def _asked(answer: Any) -> Any:
    return answer.job.messages[0]


MESSAGES: Final = (
    Probe("messages", "yes", {"messages": []}, refuses("messages", "invalid_value"), "at least one"),
    Probe("messages[].role", "yes", _message(role="system"), check(lambda a: _asked(a).role == "system"),
          "`system`, `developer`, `user`, `assistant`, `tool`; `developer` is not changed to `system`"),
    Probe("messages[].role: others", "no", _message(role="pirate"),
          refuses("messages[0].role", "invalid_value"), "refused"),
    Probe("messages[].content", "differs", {"messages": [{"role": "assistant", "content": None}, _HI]},
          check(lambda a: a.job.messages[0].content == ""),
          "a text, null, or text parts, which are joined"),
    Probe("messages[].content[].type", "differs", _message(content=[{"type": "image_url", "image_url": {}}]),
          refuses("messages[0].content", "invalid_type"), "`text` and `refusal`; others are refused"),
    Probe("messages[].content[].text", "yes", _message(content=[{"type": "text", "text": "Hi"}]),
          check(lambda a: _asked(a).content == "Hi")),
    Probe("messages[].content[].refusal", "yes",
          _message(role="assistant", content=[{"type": "refusal", "refusal": "No"}]),
          check(lambda a: _asked(a).content == "No")),
    Probe("messages[].name", "yes", _message(name="Ann"), check(lambda a: _asked(a).name == "Ann"),
          "used if the model's template has it"),
    Probe("messages[].tool_calls[].id", "yes", _called(), check(lambda a: _call(a).id == "call_1")),
    Probe("messages[].tool_calls[].type", "yes", _called(type="custom"),
          refuses("messages[1].tool_calls[0].type"), "`function` only"),
    Probe("messages[].tool_calls[].function.name", "yes", _called(),
          check(lambda a: _call(a).function.name == "f")),
    Probe("messages[].tool_calls[].function.arguments", "yes", _called(),
          check(lambda a: json.loads(_call(a).function.arguments) == {"x": 5})),
    Probe("messages[].tool_call_id", "yes", _called(),
          check(lambda a: a.job.messages[2].tool_call_id == "call_1")),
    Probe("messages[].reasoning_content", "yes", _message(role="assistant", reasoning_content="Hm"),
          check(lambda a: _asked(a).reasoning_content == "Hm"), "not OpenAI's; used if the template has it"),
    Probe("messages[].function_call", "no", _message(function_call={"name": "f"}),
          refuses("messages[0].function_call"), "refused: use `tool_calls`"),
)  # fmt: skip

TOOLS: Final = (
    Probe("tools", "differs", _tooled(tool_choice="required"),
          check(lambda a: _named(a) == "f" and a.choices[0]["finish_reason"] == "tool_calls"),
          "at most 128; a model without a known notation writes generic JSON"),
    Probe("tools[].type", "yes", {"tools": [{**_TOOL, "type": "custom"}]}, refuses("tools[0].type"),
          "`function` only"),
    Probe("tools[].function.name", "yes", {"tools": [_TOOL, _TOOL]},
          refuses("tools[1].function.name", "invalid_value")),
    Probe("tools[].function.description",
          "yes", _tooled(), check(lambda a: _function_of(a)["description"] == "It")),
    Probe("tools[].function.parameters", "yes", _tooled(tool_choice="required"),
          check(lambda a: json.loads(_arguments(a)) == {"x": 5})),
    Probe("tools[].function.strict", "differs", _tooled(), check(lambda a: _function_of(a)["strict"] is True),
          "the schema is always enforced for calls that `tool_choice` demands, and never for others"),
    Probe("tool_choice.type", "yes", _tooled(tool_choice="none"), check(lambda a: a.job.tools is None),
          "`none`, `auto`, `required`, `function`"),
    Probe("tool_choice: without tools", "no", {"tools": [], "tool_choice": "auto"},
          refuses("tool_choice", "invalid_value"), "refused, except `none`; `tools: []` counts as no tools"),
    Probe("tool_choice.function.name", "yes",
          _tooled(tool_choice={"type": "function", "function": {"name": "f"}}),
          check(lambda a: _named(a) == "f" and a.choices[0]["finish_reason"] == "stop"),
          "`finish_reason` is `stop`, as in OpenAI's API"),
    Probe("parallel_tool_calls", "yes", _tooled(tool_choice="required", parallel_tool_calls=False),
          check(lambda a: len(a.choices[0]["message"]["tool_calls"]) == 1)),
)  # fmt: skip

OWN: Final = (
    Probe("max_completion_tokens", "differs", {"max_completion_tokens": 3}, reaches(max_tokens=3),
          "default: the checkpoint's, else the rest of the context"),
    Probe("max_tokens", "yes", {"max_tokens": 3}, reaches(max_tokens=3), "the older name"),
    Probe("logprobs", "yes", {"logprobs": True},
          check(lambda a: [each["token"] for each in a.choices[0]["logprobs"]["content"]] == list(TEXT[:4]))),
    Probe("top_logprobs", "yes", {"logprobs": True, "top_logprobs": 2}, reaches(logprobs=2), "up to 20"),
)  # fmt: skip

NOT_HERE: Final = (
    Probe("functions", "no", {"functions": [_FUNCTION]}, refuses("functions"), "refused"),
    Probe("audio", "no", {"audio": {"voice": "x"}}, refuses("audio"), "refused: the output is text only"),
    Probe("web_search_options", "no", {"web_search_options": {"a": 1}}, refuses("web_search_options"),
          "refused"),
    Probe("function_call", "no", {"function_call": "auto"}, refuses("function_call"), "refused"),
    _ignored("modalities", ["text"], "ignored: the output is text"),
    _ignored("prediction", {"type": "content", "content": "x"},
          "ignored: the engine makes its own speculation"),
    _ignored("reasoning_effort", "low"),
    _ignored("verbosity", "low"),
    _ignored("service_tier", "auto", "ignored: see `priority`"),
    _ignored("safety_identifier", "x"),
    _ignored("moderation", {"model": "x"}),
    _ignored("prompt_cache_key", "x", "ignored: the prefix cache finds every prefix; see `cache_salt`"),
    _ignored("prompt_cache_retention", "24h"),
    _ignored("prompt_cache_options", {"mode": "implicit"}),
)  # fmt: skip

OF_VLLM: Final = (
    _ignored("chat_template", "x", "ignored: the checkpoint's template is used"),
    Probe("chat_template_kwargs", "yes", {"chat_template_kwargs": {"a": 1}},
          check(lambda a: a.job.chat_template_kwargs == {"a": 1})),
    _ignored("add_generation_prompt", True, "ignored: always true"),
    _ignored("continue_final_message", False, "ignored: always false"),
    _ignored("echo", True),
)  # fmt: skip

CHAT: Final = Endpoint(
    "/v1/chat/completions",
    {"model": "null", "messages": [_HI], "max_tokens": 4, "seed": SEED},
    {
        "OpenAI's": (
            *MESSAGES,
            *shared.OPENAI,
            *OWN,
            *TOOLS,
            *shared.RESPONSE_FORMAT,
            *shared.NO_EFFECT,
            *NOT_HERE,
        ),
        "vLLM's": (*shared.VLLM, *OF_VLLM),
        "pagefleet's": shared.OURS,
    },
)
