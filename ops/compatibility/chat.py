"""``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Any, Final

from ops.compatibility import shared
from ops.compatibility.probe import SEED, TEXT, Endpoint, Probe, ignores, reaches, refuses, says

_HI: Final = {"role": "user", "content": "Hi"}
_IMAGE: Final = {"type": "image_url", "image_url": {"url": "data:,"}}
_TOOL: Final = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def _message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{**_HI, **fields}]}


def _ignored(name: str, value: Any, words: str = "ignored") -> Probe:
    return Probe(name, "no", {name: value}, ignores(name), words)


def _asked(answer: Any) -> Any:
    return answer.job.messages[0]


MESSAGES: Final = (
    Probe("messages", "yes", {"messages": []}, refuses("messages", "invalid_type"), "at least one"),
    Probe("messages[].role", "yes", _message(role="system"), says(lambda a: _asked(a).role == "system"),
          "whatever the model's template knows; `developer` is not made `system`"),
    Probe("messages[].content", "differs", _message(content=[{"type": "text", "text": "Hi"}]),
          says(lambda a: _asked(a).content == "Hi"), "a text, or parts of text, which are joined"),
    Probe("messages[].content: images, audio, files", "no", _message(content=[_IMAGE]),
          refuses("messages[0].content", "invalid_type"), "refused"),
    Probe("messages[].name", "yes", _message(name="Ann"), says(lambda a: _asked(a).name == "Ann"),
          "where the model's template shows it"),
    Probe("messages[].tool_calls", "no", _message(tool_calls=[{"id": "1"}]),
          refuses("messages[0].tool_calls"), "refused"),
    Probe("messages[].tool_call_id", "no", _message(tool_call_id="1"),
          refuses("messages[0].tool_call_id"), "refused"),
    Probe("messages[].function_call", "no", _message(function_call={"name": "f"}),
          refuses("messages[0].function_call"), "refused"),
)  # fmt: skip

OWN: Final = (
    Probe("max_completion_tokens", "differs", {"max_completion_tokens": 3}, reaches(max_tokens=3),
          "without it on to the end of the context, or what the checkpoint says"),
    Probe("max_tokens", "yes", {"max_tokens": 3}, reaches(max_tokens=3), "the older name"),
    Probe("logprobs", "yes", {"logprobs": True},
          says(lambda a: [each["token"] for each in a.choices[0]["logprobs"]["content"]] == list(TEXT[:4]))),
    Probe("top_logprobs", "yes", {"logprobs": True, "top_logprobs": 2}, reaches(logprobs=2), "up to 20"),
)  # fmt: skip

NOT_HERE: Final = (
    Probe("tools", "no", {"tools": [_TOOL]}, refuses("tools"), "refused"),
    Probe("functions", "no", {"functions": [_TOOL["function"]]}, refuses("functions"), "refused"),
    Probe("audio", "no", {"audio": {"voice": "x"}}, refuses("audio"), "refused: only text is generated"),
    Probe("web_search_options", "no", {"web_search_options": {"a": 1}}, refuses("web_search_options"),
          "refused"),
    _ignored("tool_choice", "auto", "ignored: there are no tools"),
    _ignored("function_call", "auto", "ignored: there are no functions"),
    _ignored("parallel_tool_calls", True, "ignored: there are no tools"),
    _ignored("modalities", ["text"], "ignored: always text"),
    _ignored("prediction", {"type": "content", "content": "x"}, "ignored: guesses are the engine's own"),
    _ignored("reasoning_effort", "low"),
    _ignored("verbosity", "low"),
    _ignored("service_tier", "auto", "ignored: see `priority`"),
    _ignored("safety_identifier", "x"),
    _ignored("moderation", {"model": "x"}),
    _ignored("prompt_cache_key", "x", "ignored: any prefix is found again; see `cache_salt`"),
    _ignored("prompt_cache_retention", "24h"),
    _ignored("prompt_cache_options", {"mode": "implicit"}),
)  # fmt: skip

OF_VLLM: Final = (
    _ignored("chat_template", "x", "ignored: the checkpoint's"),
    _ignored("chat_template_kwargs", {"a": 1}),
    _ignored("add_generation_prompt", True, "ignored: always"),
    _ignored("continue_final_message", False, "ignored: never"),
    _ignored("echo", True),
)

CHAT: Final = Endpoint(
    "/v1/chat/completions",
    {"model": "null", "messages": [_HI], "max_tokens": 4, "seed": SEED},
    {
        "OpenAI's": (*MESSAGES, *shared.OPENAI, *OWN, *shared.RESPONSE_FORMAT, *shared.NO_EFFECT, *NOT_HERE),
        "vLLM's": (*shared.VLLM, *OF_VLLM),
        "Ours": shared.OURS,
    },
)
