"""The parameters that both generating endpoints have."""

from __future__ import annotations

import json
from typing import Final

from ops.compatibility.probe import (
    TEXT,
    Answer,
    Probe,
    check,
    has_no_effect,
    ignores,
    ignores_in,
    reaches,
    refuses,
)

_SCHEMA: Final = {"type": "object", "properties": {"x": {"enum": [5]}}, "required": ["x"]}
_SCHEMA |= {"additionalProperties": False}


def _format(**fields: object) -> dict[str, object]:
    wanted = {"type": "json_schema", "json_schema": {"schema": _SCHEMA, **fields}}
    return {"response_format": wanted, "max_tokens": 40}


def _is_five(answer: Answer) -> bool:
    return answer.status == 200 and json.loads(answer.text) == {"x": 5}


def _has_token_ids(answer: Answer) -> bool:
    (choice,) = answer.choices
    of_prompt = (choice if "text" in choice else answer.data)["prompt_token_ids"]
    return (
        choice["token_ids"] == list(map(ord, TEXT[:4]))
        and len(of_prompt) == answer.data["usage"]["prompt_tokens"]
    )


def _own(name: str, value: object) -> Probe:
    return Probe(name, "yes", {name: value}, reaches(**{name: value}))


OPENAI: Final = (
    Probe(
        "model", "yes", {"model": "nobody"}, refuses("model", "model_not_found", 404), "the name or an alias"
    ),
    Probe(
        "stream",
        "yes",
        {"stream": True},
        check(lambda a: len(a.data) > 1 and "position" not in a.data[0]),
        "`data:` lines only, and comments while the stream is idle",
    ),
    Probe(
        "stream_options.include_usage",
        "yes",
        {"stream": True, "stream_options": {"include_usage": True}},
        check(lambda a: a.data[-1]["usage"]["completion_tokens"] == 4 and a.data[-1]["choices"] == []),
    ),
    Probe(
        "stream_options.continuous_usage_stats",
        "yes",
        {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        check(lambda a: [each["usage"]["completion_tokens"] for each in a.data][-2:] == [4, 4]),
        "vLLM's",
    ),
    Probe(
        "stream_options.include_ids",
        "yes",
        {"stream": True, "stream_options": {"include_ids": True}},
        check(lambda a: [each["position"] for each in a.data][-1] == "4"),
        "pagefleet's: each event has a `position` and an id to resume after",
    ),
    Probe(
        "stream_options.include_obfuscation",
        "no",
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        ignores_in("stream_options.include_obfuscation"),
        "ignored",
    ),
    Probe(
        "stream_options: without stream",
        "no",
        {"stream_options": {"include_usage": True}},
        refuses("stream_options", "invalid_value"),
        "refused",
    ),
    Probe("n", "yes", {"n": 2}, check(lambda a: len(a.choices) == 2), "1 to 128"),
    Probe("temperature", "differs", {"temperature": 50.0}, reaches(temperature=50.0), "up to 100"),
    _own("top_p", 0.5),
    Probe("stop", "differs", {"stop": list("abcdX")}, reaches(stop=list("abcdX")), "also more than 4"),
    Probe(
        "seed",
        "yes",
        {"seed": -1},
        reaches(seed=2**64 - 1),
        "the same tokens in float64; in other dtypes rounding may decide near ties (docs/sampling.md)",
    ),
    Probe("seed: beyond int64", "no", {"seed": 2**63}, refuses("seed", "invalid_value"), "refused"),
    Probe("presence_penalty", "yes", {"presence_penalty": -2.0}, reaches(presence_penalty=-2.0)),
    Probe("frequency_penalty", "yes", {"frequency_penalty": 2.0}, reaches(frequency_penalty=2.0)),
    Probe("logit_bias", "yes", {"logit_bias": {"65": -100}}, reaches(logit_bias={65: -100.0})),
    Probe("user", "no", {"user": "me"}, has_no_effect, "no effect"),
)

RESPONSE_FORMAT: Final = (
    Probe("response_format.type: text", "yes", {"response_format": {"type": "text"}}, has_no_effect),
    Probe(
        "response_format.type: json_object",
        "differs",
        {"response_format": {"type": "json_object"}, "max_tokens": 40},
        check(lambda a: a.text.startswith("{")),
        "the messages need not mention JSON",
    ),
    Probe("response_format.schema", "yes",
          {"response_format": {"type": "json_object", "schema": _SCHEMA}, "max_tokens": 40}, _is_five,
          "llama.cpp's field for the schema"),
    Probe("response_format.json_schema.schema", "yes", _format(), _is_five,
          "objects are closed unless `additionalProperties` allows more; see "
          "[structured-output.md](structured-output.md)"),
    Probe("response_format.json_schema.name", "no", _format(name="x"), _is_five, "no effect"),
    Probe("response_format.json_schema.description", "no", _format(description="x"), _is_five, "no effect"),
    Probe("response_format.json_schema.strict", "differs", _format(strict=False), _is_five,
          "always enforced"),
)  # fmt: skip

NO_EFFECT: Final = (
    Probe("metadata", "no", {"metadata": {"a": "b"}}, has_no_effect, "no effect"),
    Probe(
        "store", "no", {"store": True}, has_no_effect, "no effect: every answer is stored for `result_ttl_s`"
    ),
)

VLLM: Final = (
    Probe("top_k", "yes", {"top_k": -1}, reaches(top_k=0), "-1 and 0 keep all tokens"),
    _own("min_p", 0.1),
    _own("repetition_penalty", 1.2),
    _own("min_tokens", 2),
    Probe(
        "stop_token_ids",
        "yes",
        {"stop_token_ids": [ord(TEXT[2])]},
        check(lambda a: a.choices[0]["stop_reason"] == ord(TEXT[2])),
    ),
    Probe(
        "include_stop_str_in_output",
        "yes",
        {"include_stop_str_in_output": True, "stop": TEXT[2]},
        check(lambda a: a.text == TEXT[:3]),
    ),
    _own("ignore_eos", True),
    _own("skip_special_tokens", False),
    _own("allowed_token_ids", [65, 66]),
    Probe("bad_words", "yes", {"bad_words": "no"}, reaches(bad_words=["no"]), "one text or a list"),
    Probe(
        "prompt_logprobs",
        "yes",
        {"prompt_logprobs": 0},
        check(
            lambda a: (
                (a.data if "message" in a.choices[0] else a.choices[0])["prompt_logprobs"][0] is None
            )
        ),
        "in a chat next to `choices`; in a stream with the first tokens",
    ),
    _own("truncate_prompt_tokens", 1),
    _own("cache_salt", "mine"),
    _own("prefix_cache", False),
    Probe(
        "return_token_ids",
        "yes",
        {"return_token_ids": True},
        check(_has_token_ids),
        "also gives `prompt_token_ids`: in each choice, in a chat next to them; in a stream with the first "
        "tokens",
    ),
    Probe("priority", "differs", {"priority": -4}, reaches(priority=9),
          "-4 to 5; the default is 0, and lower values run earlier"),
    Probe("structured_outputs", "yes", {"structured_outputs": {"json": {"const": 5}}},
          reaches(structured_outputs={"json_schema": {"const": 5}, "json_object": False, "regex": None,
                                      "choice": None, "grammar": None, "wind_down": False}),
          "`json`, `json_object`, `regex`, `choice`, `grammar`; and pagefleet's `wind_down`"),
    Probe("guided_json", "yes", {"guided_json": '{"const": 5}'}, check(lambda a: a.text == "5"),
          "also as a text"),
    Probe("guided_regex", "yes", {"guided_regex": "[0-9]{3}"}, check(lambda a: a.text.isdigit())),
    Probe("guided_choice", "yes", {"guided_choice": ["on"]}, check(lambda a: a.text == "on")),
    Probe("guided_grammar", "yes", {"guided_grammar": 'start: "on"'}, check(lambda a: a.text == "on")),
    Probe("use_beam_search", "no", {"use_beam_search": True}, ignores("use_beam_search"), "ignored"),
    Probe("length_penalty", "no", {"length_penalty": 1.0}, ignores("length_penalty"),
          "ignored: there is no beam search"),
    Probe("min_tokens: more than max_tokens", "no", {"min_tokens": 5},
          refuses("min_tokens", "invalid_value"), "refused"),
    Probe("spaces_between_special_tokens", "no", {"spaces_between_special_tokens": False},
          ignores("spaces_between_special_tokens"), "ignored"),
    Probe("guided_decoding_backend", "no", {"guided_decoding_backend": "outlines"},
          ignores("guided_decoding_backend"), "ignored: there is one backend"),
    Probe("request_id", "no", {"request_id": "mine"}, ignores("request_id"),
          "ignored: the gateway makes the id"),
)  # fmt: skip

OURS: Final = (
    _own("typical_p", 0.9),
    Probe("kept_special_tokens", "yes", {"kept_special_tokens": ["<|bos|>"]},
          reaches(kept_special_tokens=["<|bos|>"]), "special tokens that are kept in the text"),
    Probe(
        "background",
        "yes",
        {"background": True},
        lambda a: a.status == 202 and a.job is not None and a.job.detached is True,
        "continues without its client; without `stream` the answer is a 202 with the job's id",
    ),
    Probe("deadline_s", "yes", {"deadline_s": 60.0}, reaches(deadline_s=60.0),
          "the job ends after this time"),
    Probe("result_ttl_s", "yes", {"result_ttl_s": 60}, reaches(result_ttl_s=60),
          "how long the result can be read"),
    Probe("an unknown field", "no", {"colour": "red"}, ignores("colour"),
          "ignored and listed in `x-pagefleet-ignored`; refused with `--strict`"),
)  # fmt: skip
