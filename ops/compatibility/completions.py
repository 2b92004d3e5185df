"""``POST /v1/completions``."""

from __future__ import annotations

from typing import Final

from ops.compatibility import shared
from ops.compatibility.probe import SEED, TEXT, Endpoint, Probe, ignores, reaches, refuses, says

OWN: Final = (
    Probe("prompt: a text", "yes", {"prompt": "You"}, reaches(prompt="You")),
    Probe("prompt: token ids", "yes", {"prompt": [72, 105]}, reaches(prompt_token_ids=[72, 105])),
    Probe("prompt: a list of either", "differs", {"prompt": ["a", [72]]},
          says(lambda a: [each["index"] for each in a.choices] == [0, 1]), "512 at most; each is a job"),
    Probe("prompt: none", "no", {"prompt": None}, refuses("prompt", "invalid_type"), "refused"),
    Probe("max_tokens", "yes", {"max_tokens": None}, reaches(max_tokens=16), "16 where it is not given"),
    Probe("echo", "yes", {"echo": True}, says(lambda a: a.text == "Hi" + TEXT[:4]),
          "with `logprobs` the prompt's too"),
    Probe("logprobs", "yes", {"logprobs": 1},
          says(lambda a: a.choices[0]["logprobs"]["tokens"] == list(TEXT[:4])), "up to 20"),
    Probe("best_of", "no", {"best_of": 2}, refuses("best_of"), "refused, but where it is `n`"),
    Probe("suffix", "no", {"suffix": "x"}, refuses("suffix"), "refused"),
)  # fmt: skip

OF_VLLM: Final = (
    Probe("add_special_tokens", "no", {"add_special_tokens": False}, ignores("add_special_tokens"),
          "ignored: as the tokenizer likes it"),
    Probe("prompt_embeds", "no", {"prompt_embeds": "x"}, ignores("prompt_embeds"), "ignored"),
)  # fmt: skip

COMPLETIONS: Final = Endpoint(
    "/v1/completions",
    {"model": "null", "prompt": "Hi", "max_tokens": 4, "seed": SEED},
    {
        "OpenAI's": (*OWN, *shared.OPENAI),
        "vLLM's": (*shared.VLLM, *shared.RESPONSE_FORMAT, *OF_VLLM),
        "Ours": (*shared.OURS, *shared.NO_EFFECT),
    },
)
