"""``POST /tokenize`` and ``/detokenize``."""

from __future__ import annotations

from typing import Final

from ops.compatibility.probe import Endpoint, Probe, ignores_in, refuses, says

_HI: Final = {"prompt": None, "messages": [{"role": "user", "content": "Hi"}]}

TOKENIZE: Final = Endpoint(
    "/tokenize",
    {"prompt": "Hi"},
    {
        "vLLM's": (
            Probe("model", "differs", {"model": "nobody"}, refuses("model", "model_not_found", 404),
                  "may be left out where there is one only"),
            Probe("prompt", "yes", {}, says(lambda a: a.data["tokens"][-2:] == [72, 105])),
            Probe("messages", "yes", _HI, says(lambda a: a.data["count"] > 3), "in place of `prompt`"),
            Probe("add_special_tokens", "yes", {"add_special_tokens": False},
                  says(lambda a: a.data["tokens"] == [72, 105])),
            Probe("add_generation_prompt", "yes", {**_HI, "add_generation_prompt": False},
                  says(lambda a: a.data["count"] > 3)),
            Probe("return_token_strs", "yes", {"return_token_strs": True},
                  says(lambda a: len(a.data["token_strs"]) == a.data["count"])),
            Probe("chat_template", "no", {"chat_template": "x"}, refuses("chat_template"), "refused"),
            Probe("tools", "no", {"tools": [{"type": "function"}]}, refuses("tools"), "refused"),
            Probe("a field that nobody knows", "no", {"colour": "red"}, ignores_in("colour"), "ignored"),
        )
    },
)  # fmt: skip

DETOKENIZE: Final = Endpoint(
    "/detokenize",
    {"tokens": [72, 105]},
    {
        "vLLM's": (
            Probe("model", "differs", {"model": "nobody"}, refuses("model", "model_not_found", 404),
                  "may be left out where there is one only"),
            Probe("tokens", "yes", {}, says(lambda a: a.data == {"prompt": "Hi"})),
        )
    },
)  # fmt: skip
