"""/v1/chat/completions, asked by the ``openai`` package."""

from __future__ import annotations

import json
import time
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

HI = [{"role": "user", "content": "Hi"}]
SEED_7 = 'zF E;@l9!Uhk= 4"'


def test_an_answer(ai, fleet):
    answer = ai.chat.completions.create(model="null", messages=HI, max_tokens=16, seed=7)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", SEED_7)
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (answer.object, answer.model) == ("chat.completion", "null")
    assert answer.id.startswith("chatcmpl-")
    assert abs(answer.created - time.time()) < 60
    used = answer.usage
    assert (used.prompt_tokens, used.completion_tokens, used.total_tokens) == (21, 16, 37)
    # It is a job like any other.
    assert fleet.attach(answer.id).result().text == SEED_7


def test_a_stream_is_the_same_in_pieces(ai):
    chunks = list(ai.chat.completions.create(model="null", messages=HI, max_tokens=16, seed=7, stream=True))
    first, *middle = chunks
    last = chunks[-1]
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == SEED_7
    assert len(middle) > 1
    assert SEED_7.endswith(last.choices[0].delta.content)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert last.choices[0].finish_reason == "length"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_at_the_end_of_a_stream(ai):
    *chunks, last = ai.chat.completions.create(
        model="null", messages=HI, max_tokens=5, n=2, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (21, 10)
    assert all(chunk.usage is None for chunk in chunks)


def test_several_choices(ai):
    options = {"model": "null", "messages": HI, "max_tokens": 12, "seed": 7, "n": 3}
    answer = ai.chat.completions.create(**options)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert (len(set(texts)), texts[0]) == (3, SEED_7[:12])
    assert answer.usage.completion_tokens == 36
    streamed, finished = ["", "", ""], []
    for chunk in ai.chat.completions.create(**options, stream=True):
        (choice,) = chunk.choices
        streamed[choice.index] += choice.delta.content or ""
        finished += [choice.index] if choice.finish_reason else []
    assert streamed == texts
    assert sorted(finished) == [0, 1, 2]


def test_logprobs(ai):
    options = {
        "model": "null",
        "messages": HI,
        "max_tokens": 4,
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 2,
    }
    content = ai.chat.completions.create(**options).choices[0].logprobs.content
    assert [each.token for each in content] == list(SEED_7[:4])
    assert (content[0].logprob, content[0].bytes, len(content[0].top_logprobs)) == (0.0, [ord("z")], 1)
    streamed = [
        each
        for chunk in ai.chat.completions.create(**options, stream=True)
        if chunk.choices[0].logprobs
        for each in chunk.choices[0].logprobs.content
    ]
    assert streamed == content


def test_a_stop_string_and_what_vllm_calls_it(ai):
    answer = ai.chat.completions.create(
        model="null", messages=HI, max_completion_tokens=16, seed=7, stop="l9"
    )
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (SEED_7[:6], "stop")
    assert choice.stop_reason == "l9"


def test_vllms_extras(ai):
    extra = {
        "stop_token_ids": [ord("l")],
        "include_stop_str_in_output": True,
        "top_k": -1,
        "return_token_ids": True,
    }
    answer = ai.chat.completions.create(model="null", messages=HI, max_tokens=16, seed=7, extra_body=extra)
    (choice,) = answer.choices
    assert (choice.message.content, choice.stop_reason) == (SEED_7[:7], ord("l"))
    assert choice.token_ids == [ord(char) for char in SEED_7[:7]]


def test_parts_of_text_and_a_turn_without_content(ai):
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    messages = [*HI, {"role": "assistant", "content": None}, {"role": "user", "content": parts}]
    plain = [*HI, {"role": "assistant", "content": ""}, *HI]
    used = [
        ai.chat.completions.create(model="null", messages=each, max_tokens=1).usage.prompt_tokens
        for each in (messages, plain)
    ]
    assert used[0] == used[1]


class Point(BaseModel):
    x: int
    colour: Literal["red", "blue"]


def test_parsed_structure(ai):
    answer = ai.chat.completions.parse(
        model="null", messages=HI, max_tokens=120, response_format=Point, extra_body={"cache_salt": "a"}
    )
    assert answer.choices[0].message.parsed.colour in ("red", "blue")


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        ({"response_format": {"type": "json_object"}}, lambda text: text.startswith("{")),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda text: text in ("yes", "no")),
        ({"structured_outputs": {"json": json.dumps({"enum": [5]})}}, lambda text: text == "5"),
        ({"guided_regex": "[0-9]{3}"}, lambda text: len(text) == 3 and text.isdigit()),
    ],
)
def test_structure_in_other_words(ai, options, holds):
    answer = ai.chat.completions.create(model="null", messages=HI, max_tokens=40, extra_body=options)
    assert holds(answer.choices[0].message.content)


def test_without_max_tokens_it_goes_on_to_the_end_of_the_context(http):
    body = {"model": "null", "messages": HI, "background": True}
    job_id = http.post("/v1/chat/completions", json=body).json()["id"]
    with http.stream("GET", f"/v1/jobs/{job_id}/stream") as reply:
        assert sum(line.startswith("id: ") for line in _first(reply.iter_lines(), 900)) >= 290
    assert http.delete(f"/v1/jobs/{job_id}").json()["deleted"] is True


def _first(lines, count):
    return [line for line, _ in zip(lines, range(count), strict=False)]


async def test_many_at_once(gateway):
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as ai:

        async def text(seed):
            stream = await ai.chat.completions.create(
                model="null", messages=HI, max_tokens=20, seed=seed, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        texts = await asyncio.gather(*(text(seed) for seed in [7] * 4 + list(range(20))))
    assert len(set(texts)) == 20
    assert texts[:4] == [texts[4 + 7]] * 4
