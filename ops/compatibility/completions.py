"""``POST /v1/completions``."""

from __future__ import annotations

from typing import Final

from ops.compatibility import shared
from ops.compatibility.probe import SEED, TEXT, Endpoint, Probe, check, ignores, reaches, refuses

OWN: Final = (
    Probe("prompt: a text", "yes", {"prompt": "You"}, reaches(prompt="You")),
    Probe("prompt: token ids", "yes", {"prompt": [72, 105]}, reaches(prompt_token_ids=[72, 105])),
    Probe("prompt: a list of either", "differs", {"prompt": ["a", [72]]},
          check(lambda a: [each["index"] for each in a.choices] == [0, 1]), "at most 512; each is a job"),
    Probe("prompt: none", "no", {"prompt": None}, refuses("prompt", "invalid_type"), "refused"),
    Probe("max_tokens", "yes", {"max_tokens": None}, reaches(max_tokens=16), "default 16"),
    Probe("echo", "yes", {"echo": True}, check(lambda a: a.text == "Hi" + TEXT[:4]),
          "with `logprobs` also the prompt's log probabilities"),
    Probe("logprobs", "yes", {"logprobs": 1},
          check(lambda a: a.choices[0]["logprobs"]["tokens"] == list(TEXT[:4])), "up to 20"),
    Probe("best_of", "no", {"best_of": 2}, refuses("best_of"), "refused, unless it equals `n`"),
    Probe("suffix", "no", {"suffix": "x"}, refuses("suffix"), "refused"),
)  # fmt: skip

OF_VLLM: Final = (
    Probe("add_special_tokens", "no", {"add_special_tokens": False}, ignores("add_special_tokens"),
          "ignored: the tokenizer's default is used"),
    Probe("prompt_embeds", "no", {"prompt_embeds": "x"}, ignores("prompt_embeds"), "ignored"),
)  # fmt: skip

COMPLETIONS: Final = Endpoint(
    "/v1/completions",
    {"model": "null", "prompt": "Hi", "max_tokens": 4, "seed": SEED},
    {
        "OpenAI's": (*OWN, *shared.OPENAI),
        "vLLM's": (*shared.VLLM, *shared.RESPONSE_FORMAT, *OF_VLLM),
        "pagefleet's": (*shared.OURS, *shared.NO_EFFECT),
    },
)
