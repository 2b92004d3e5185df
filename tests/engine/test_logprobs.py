"""Logprobs of outputs and prompts against their definition, on a small model in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefleet.engine import LLM, EngineConfig, EngineRequest, InvalidRequestError, LLMEngine, SamplingParams
from pagefleet.engine.execution.executor import LoadedModel
from pagefleet.engine.execution.logprobs import token_logprobs
from pagefleet.engine.outputs import TokenLogprobs

VOCAB_SIZE = 97
PROMPT = [1, 5, 9, 40, 41, 42, 43, 44, 45, 46, 47, 48, 3, 4, 8, 11, 12, 13, 90, 91, 92]
DRAWN = {"max_tokens": 12, "seed": 5, "ignore_eos": True}


def stated(logits: np.ndarray, token_id: int, num_top: int) -> TokenLogprobs:
    """The definition, in numpy."""
    shifted = logits - logits.max()
    logprobs = shifted - math.log(np.exp(shifted).sum())
    by_rank = sorted(range(len(logits)), key=lambda other: (-logits[other], other))[:num_top]
    rank = 1 + int((logits > logits[token_id]).sum())
    return TokenLogprobs(
        token_id, float(logprobs[token_id]), rank, tuple((other, float(logprobs[other])) for other in by_rank)
    )


def assert_same(found: TokenLogprobs, wanted: TokenLogprobs) -> None:
    """As near as transformers' float32 angles allow."""
    assert (found.token_id, found.rank) == (wanted.token_id, wanted.rank)
    assert found.logprob == pytest.approx(wanted.logprob, abs=1e-5)
    assert [token_id for token_id, _ in found.top] == [token_id for token_id, _ in wanted.top]
    assert [value for _, value in found.top] == pytest.approx([value for _, value in wanted.top], abs=1e-5)


levels = st.sampled_from([-math.inf, -2.0, 0.0, 0.5, 0.5, 3.0])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(levels, min_size=9, max_size=9), min_size=1, max_size=4), st.data())
def test_with_many_equal_logits_too(rows, data):
    for row in rows:
        row[0] = 0.0  # at least one that can come
    logits = np.array(rows)
    token_ids = [data.draw(st.integers(0, 8)) for _ in rows]
    num_top = [data.draw(st.integers(0, 12)) for _ in rows]
    found = token_logprobs(torch.from_numpy(logits), token_ids, num_top)
    for each, row, token_id, count in zip(found, logits, token_ids, num_top, strict=True):
        wanted = stated(row, token_id, count)
        assert (each.token_id, each.rank) == (wanted.token_id, wanted.rank)
        assert each.logprob == pytest.approx(wanted.logprob)
        assert [token_id for token_id, _ in each.top] == [token_id for token_id, _ in wanted.top]


@pytest.fixture(scope="module")
def reference(tiny_checkpoints):
    """Logits of every position of a text, by transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoints["llama"], dtype=torch.float64)

    def logits(token_ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([token_ids])).logits[0].numpy()

    return logits


def make_engine(tiny: LoadedModel, num_blocks: int = 64, **fields) -> LLMEngine:
    info = replace(tiny.info, num_blocks=num_blocks)
    return LLMEngine(replace(tiny, info=info), EngineConfig(model="tiny", **fields))


def run(engine: LLMEngine, *requests: EngineRequest) -> dict[tuple[str, int], list]:
    for request in requests:
        engine.add_request(request)
    found: dict[tuple[str, int], list] = {}
    while engine.has_unfinished_requests:
        for output in engine.step():
            found.setdefault((output.request_id, output.choice), []).append(output)
    engine.check_integrity()
    return found


def logprobs_of(outputs: list) -> list[TokenLogprobs]:
    return [each for output in outputs for each in output.logprobs]


def check(reference, outputs: list, prompt: list[int], num_top: int | None, num_prompt_top: int | None):
    tokens = [token for output in outputs for token in output.token_ids]
    logits = reference(prompt + tokens)
    wanted = [] if num_top is None else enumerate(tokens, len(prompt) - 1)
    found = logprobs_of(outputs)
    assert len(found) == (0 if num_top is None else len(tokens))
    for each, (position, token_id) in zip(found, wanted, strict=True):
        assert_same(each, stated(logits[position], token_id, num_top or 0))
    assert [output.prompt_logprobs for output in outputs[1:]] == [()] * (len(outputs) - 1)
    prompt_found = outputs[0].prompt_logprobs
    if num_prompt_top is None or outputs[0].choice > 0:
        assert prompt_found == ()
        return
    assert len(prompt_found) == len(prompt) - 1
    for position, each in enumerate(prompt_found):
        assert_same(each, stated(logits[position], prompt[position + 1], num_prompt_top))


@pytest.mark.parametrize("budget", [3, 64])
@pytest.mark.parametrize("num_blocks", [16, 64])
def test_of_output_and_prompt_whatever_the_model_draws(tiny, reference, budget, num_blocks):
    """In chunks, with preemptions, beside others, with a cache that knows the prompt: the true distribution,
    whatever temperature, penalties and filters are."""
    engine = make_engine(tiny, max_num_batched_tokens=budget, num_blocks=num_blocks)
    run(engine, EngineRequest("before", PROMPT, SamplingParams(max_tokens=1)))
    asked = {
        "greedy": SamplingParams(temperature=0.0, logprobs=3, **DRAWN),
        "hot": SamplingParams(temperature=2.0, top_k=9, repetition_penalty=1.5, logprobs=0, **DRAWN),
        "prompt": SamplingParams(prompt_logprobs=5, logprobs=20, **DRAWN),
        "prompt only": SamplingParams(prompt_logprobs=0, n=3, **DRAWN),
        "neither": SamplingParams(**DRAWN),
    }
    found = run(engine, *(EngineRequest(name, PROMPT, params) for name, params in asked.items()))
    assert len(found) == 7
    for (name, _), outputs in found.items():
        check(reference, outputs, PROMPT, asked[name].logprobs, asked[name].prompt_logprobs)
    if num_blocks == 16:
        assert engine.stats().num_preemptions > 0


def test_after_a_takeover_the_rest_follows_and_the_prompt_is_not_told_twice(tiny):
    params = SamplingParams(logprobs=2, prompt_logprobs=2, **DRAWN)
    engine = make_engine(tiny)
    whole = run(engine, EngineRequest("a", PROMPT, params))[("a", 0)]
    tokens = [token for output in whole for token in output.token_ids]
    rest = run(engine, EngineRequest("b", PROMPT, params, logs=[tokens[:5]]))[("b", 0)]
    assert [each.token_id for each in logprobs_of(rest)] == tokens[5:]
    for each, wanted in zip(logprobs_of(rest), logprobs_of(whole)[5:], strict=True):
        assert_same(each, wanted)
    assert all(output.prompt_logprobs == () for output in rest)


def test_a_prompt_of_one_token_has_none(tiny):
    engine = make_engine(tiny)
    params = SamplingParams(prompt_logprobs=1, max_tokens=2)
    assert run(engine, EngineRequest("a", [7], params))[("a", 0)][0].prompt_logprobs == ()


def test_llm_gives_choices_and_logprobs():
    llm = LLM(model="null", backend="null")
    params = SamplingParams(n=2, logprobs=1, prompt_logprobs=0, **DRAWN)
    (output,) = llm.generate([PROMPT], params)
    assert [choice.index for choice in output.choices] == [0, 1]
    assert output.choices[0].token_ids != output.choices[1].token_ids
    for choice in output.choices:
        assert tuple(each.token_id for each in choice.logprobs) == choice.token_ids
    assert [each.token_id for each in output.prompt_logprobs] == PROMPT[1:]
    llm.close()


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
@pytest.mark.parametrize("value", [-1, 21, True, 1.0])
def test_a_wrong_number_is_refused(name, value):
    with pytest.raises(InvalidRequestError) as refusal:
        SamplingParams(**{name: value})
    assert refusal.value.param == name
