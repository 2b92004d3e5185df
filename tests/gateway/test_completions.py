"""/v1/completions, asked by the ``openai`` package."""

from __future__ import annotations

SEED_7 = 'zF E;@l9!Uhk= 4"'


def test_an_answer(ai):
    answer = ai.completions.create(model="null", prompt="Hello", seed=7)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (SEED_7, "length"), "sixteen tokens, as OpenAI has it"
    assert (answer.object, answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        "text_completion",
        6,
        16,
    )
    assert answer.id.startswith("cmpl-")


def test_prompts_of_all_kinds(ai):
    def texts(prompt, **options):
        answer = ai.completions.create(model="null", prompt=prompt, max_tokens=4, seed=7, **options)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices], answer.usage.prompt_tokens

    assert texts([72, 105]) == ([SEED_7[:4]], 2)
    assert texts(["Hello", "You"]) == ([SEED_7[:4]] * 2, 10)
    assert texts([[72], [105, 106]]) == ([SEED_7[:4]] * 2, 3)
    two_of_each, _ = texts(["Hello", "You"], n=2)
    assert two_of_each[:2] == two_of_each[2:]
    assert two_of_each[0] != two_of_each[1]


def test_a_stream_of_several_prompts(ai):
    options = {"model": "null", "prompt": ["a", "b", "c"], "max_tokens": 9, "seed": 7, "n": 2}
    whole = [choice.text for choice in ai.completions.create(**options).choices]
    streamed, ends = [""] * 6, []
    for chunk in ai.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
            ends += [choice.index] if choice.finish_reason else []
    assert streamed == whole
    assert sorted(ends) == list(range(6))
    assert (chunk.usage.prompt_tokens, chunk.usage.completion_tokens) == (6, 54)


def test_echo(ai):
    answer = ai.completions.create(model="null", prompt="Hello ", echo=True, max_tokens=4, seed=7)
    assert answer.choices[0].text == "Hello " + SEED_7[:4]
    assert answer.usage.completion_tokens == 4


def test_logprobs_and_where_each_token_stands(ai):
    options = {"model": "null", "prompt": "Hello", "max_tokens": 4, "seed": 7, "logprobs": 2}
    found = ai.completions.create(**options).choices[0].logprobs
    assert (found.tokens, found.token_logprobs) == (list(SEED_7[:4]), [0.0] * 4)
    assert found.text_offset == [0, 1, 2, 3]
    assert [len(each) for each in found.top_logprobs] == [1] * 4
    streamed = {"tokens": [], "text_offset": []}
    for chunk in ai.completions.create(**options, stream=True):
        if chunk.choices[0].logprobs:
            streamed["tokens"] += chunk.choices[0].logprobs.tokens
            streamed["text_offset"] += chunk.choices[0].logprobs.text_offset
    assert streamed == {"tokens": found.tokens, "text_offset": found.text_offset}


def test_an_echoed_prompt_has_its_logprobs_too(ai):
    """What harnesses score texts with; nothing is known of the first token."""
    options = {
        "model": "null",
        "prompt": [72, 101, 108],
        "max_tokens": 2,
        "seed": 7,
        "logprobs": 0,
        "echo": True,
    }
    found = ai.completions.create(**options).choices[0]
    assert found.text == "Hel" + SEED_7[:2]
    assert found.logprobs.tokens == ["H", "e", "l", *SEED_7[:2]]
    assert found.logprobs.token_logprobs[0] is None
    assert None not in found.logprobs.token_logprobs[1:]
    assert found.logprobs.text_offset == [0, 1, 2, 3, 4]


def test_offsets_fit_the_text_behind_characters_of_several_tokens(ai):
    """Each token of this model is a byte; BOS, which the prompt's text gets, is not in it."""
    options = {"model": "null", "max_tokens": 2, "seed": 7, "logprobs": 0, "echo": True}
    options["prompt"] = "é🎉a"
    whole = ai.completions.create(**options).choices[0]
    assert whole.text == options["prompt"] + SEED_7[:2]
    assert whole.logprobs.tokens[0] == ""
    assert whole.logprobs.tokens[-3:] == ["a", *SEED_7[:2]]
    assert whole.logprobs.text_offset == [0, 0, 0, 1, 1, 1, 1, 2, 3, 4]
    streamed = {"tokens": [], "text_offset": [], "top_logprobs": []}
    for chunk in ai.completions.create(**options, stream=True):
        for name in streamed:
            streamed[name] += getattr(chunk.choices[0].logprobs, name) if chunk.choices[0].logprobs else []
    assert streamed == {name: getattr(whole.logprobs, name) for name in streamed}


def test_the_drawn_token_is_among_the_likeliest(ai):
    options = {"model": "null", "prompt": "Hello", "max_tokens": 4, "seed": 7, "logprobs": 0}
    found = ai.completions.create(**options).choices[0].logprobs
    pairs = zip(found.tokens, found.token_logprobs, strict=True)
    assert found.top_logprobs == [{token: logprob} for token, logprob in pairs]


def test_the_prompts_logprobs_as_vllm_has_them(ai):
    answer = ai.completions.create(
        model="null", prompt=[72, 101], max_tokens=1, extra_body={"prompt_logprobs": 1}
    )
    first, second = answer.choices[0].prompt_logprobs
    assert first is None
    assert second["101"]["decoded_token"] == "e"


def test_a_stream_has_the_prompts_logprobs_with_each_choice(ai):
    options = {"model": "null", "prompt": [72, 101, 108], "max_tokens": 3, "seed": 7, "n": 2}
    options |= {"logprobs": 0, "echo": True}
    whole = ai.completions.create(**options).choices
    tokens, of_prompt = [[], []], [[], []]
    for chunk in ai.completions.create(**options, stream=True):
        for choice in chunk.choices:
            tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
            of_prompt[choice.index] += getattr(choice, "prompt_logprobs", None) or []
    assert tokens == [choice.logprobs.tokens for choice in whole]
    assert of_prompt == [choice.prompt_logprobs for choice in whole]


def test_a_chats_stream_has_them_too(ai):
    options = {"model": "null", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "seed": 7}
    options["extra_body"] = {"prompt_logprobs": 0}
    whole = ai.chat.completions.create(**options)
    chunks = ai.chat.completions.create(**options, stream=True)
    (found,) = [each for chunk in chunks if (each := getattr(chunk, "prompt_logprobs", None))]
    assert found == whole.prompt_logprobs
