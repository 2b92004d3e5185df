"""``POST /tokenize`` and ``/detokenize``."""

from __future__ import annotations

from typing import Final

from ops.compatibility.probe import Endpoint, Probe, check, ignores_in, refuses

_HI: Final = {"prompt": None, "messages": [{"role": "user", "content": "Hi"}]}

TOKENIZE: Final = Endpoint(
    "/tokenize",
    {"prompt": "Hi"},
    {
        "vLLM's": (
            Probe("model", "differs", {"model": "nobody"}, refuses("model", "model_not_found", 404),
                  "optional if the fleet has one model"),
            Probe("prompt", "yes", {}, check(lambda a: a.data["tokens"][-2:] == [72, 105])),
            Probe("messages", "yes", _HI, check(lambda a: a.data["count"] > 3), "instead of `prompt`"),
            Probe("add_special_tokens", "yes", {"add_special_tokens": False},
                  check(lambda a: a.data["tokens"] == [72, 105])),
            Probe("add_generation_prompt", "yes", {**_HI, "add_generation_prompt": False},
                  check(lambda a: a.data["count"] > 3)),
            Probe("return_token_strs", "yes", {"return_token_strs": True},
                  check(lambda a: len(a.data["token_strs"]) == a.data["count"])),
            Probe("chat_template", "no", {"chat_template": "x"}, refuses("chat_template"), "refused"),
            Probe("tools", "no", {"tools": [{"type": "function"}]}, refuses("tools"), "refused"),
            Probe("an unknown field", "no", {"colour": "red"}, ignores_in("colour"), "ignored"),
        )
    },
)  # fmt: skip

DETOKENIZE: Final = Endpoint(
    "/detokenize",
    {"tokens": [72, 105]},
    {
        "vLLM's": (
            Probe("model", "differs", {"model": "nobody"}, refuses("model", "model_not_found", 404),
                  "optional if the fleet has one model"),
            Probe("tokens", "yes", {}, check(lambda a: a.data == {"prompt": "Hi"})),
        )
    },
)  # fmt: skip
