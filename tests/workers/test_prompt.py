"""A request on the wire, converted for the engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pagefleet.api.contract.errors import ContextTooLong
from pagefleet.api.contract.model_cards import CardIndex
from pagefleet.api.protocol.prepared import prepare
from pagefleet.engine import EngineConfig, LLMEngine, NullOptions, SamplingParams
from pagefleet.workers.prompting.model_card import make_card
from pagefleet.workers.prompting.prompt import engine_request
from pagefleet.workers.settings import WorkerSettings

EVERY_PARAMETER = {
    "n": 2,
    "max_tokens": 9,
    "min_tokens": 2,
    "temperature": 0.5,
    "top_k": 7,
    "top_p": 0.9,
    "min_p": 0.1,
    "typical_p": 0.8,
    "repetition_penalty": 1.2,
    "presence_penalty": -0.5,
    "frequency_penalty": 0.25,
    "logit_bias": {65: 3.0},
    "allowed_token_ids": [65, 66],
    "bad_words": ["AB"],
    "seed": 4,
    "stop": ["x"],
    "stop_token_ids": [67],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "skip_special_tokens": False,
    "kept_special_tokens": ["<|eos|>"],
    "logprobs": 3,
    "prompt_logprobs": 0,
    "speculate": False,
}


@pytest.fixture(scope="module")
def engine():
    return LLMEngine.from_config(EngineConfig(model="null", backend="null", null=NullOptions(step_time_s=0)))


def test_every_parameter_reaches_the_engine_as_the_client_gave_it(engine):
    assert list(EVERY_PARAMETER) == list(SamplingParams.__dataclass_fields__)
    card = make_card(WorkerSettings(model="null", backend="null"), engine)
    prepared = prepare(CardIndex([card]), None, {"prompt": "Hello", **EVERY_PARAMETER}, seed=1)
    # As stored in Redis and read by any worker.
    stored = type(prepared.request).model_validate_json(
        prepared.request.model_dump_json(exclude_defaults=True)
    )
    request = engine_request("a", stored, [], engine, card)
    assert request.sampling_params == SamplingParams(**EVERY_PARAMETER)
    engine.add_request(request)
    while engine.has_unfinished_requests:
        engine.step()


def test_the_card_says_what_the_checkpoint_recommends(engine):
    engine._info.default_sampling.update(temperature=0.6, top_k=20)
    card = make_card(WorkerSettings(model="null", backend="null"), engine)
    engine._info.default_sampling.clear()
    assert (card.default_sampling.temperature, card.default_sampling.top_k) == (0.6, 20)
    assert type(card).model_validate_json(card.model_dump_json()) == card
    old = card.model_dump(exclude={"default_sampling"})
    assert type(card).model_validate(old).default_sampling.temperature is None


def computed(engine, **fields):
    """Return the engine's request for these fields."""
    card = make_card(WorkerSettings(model="null", backend="null"), engine)
    prepared = prepare(CardIndex([card]), None, fields, seed=1)
    return engine_request("a", prepared.request, [], engine, card)


def test_a_prompt_is_truncated_to_its_last_tokens(engine):
    """The last tokens of text, token ids or messages are kept, even of a prompt longer than the context."""
    max_model_len = engine.info.max_model_len
    whole = list(computed(engine, prompt="Hello, world").prompt_token_ids)
    assert computed(engine, prompt="Hello, world", truncate_prompt_tokens=5).prompt_token_ids == whole[-5:]
    assert computed(engine, prompt="Hello, world", truncate_prompt_tokens=500).prompt_token_ids == whole
    ids = [1] * max_model_len + [7, 8]
    assert computed(engine, prompt_token_ids=ids, truncate_prompt_tokens=3).prompt_token_ids == [1, 7, 8]
    long = "x" * (max_model_len + 5)
    assert len(computed(engine, prompt=long, truncate_prompt_tokens=9).prompt_token_ids) == 9
    messages = [{"role": "user", "content": "Hello"}]
    assert len(computed(engine, messages=messages, truncate_prompt_tokens=4).prompt_token_ids) == 4
    for fields in ({"prompt": long}, {"prompt_token_ids": ids, "truncate_prompt_tokens": max_model_len}):
        with pytest.raises(ContextTooLong):
            computed(engine, **fields)


def test_only_jobs_with_the_same_salt_share_computed_blocks(engine):
    """The salt decides which of four identical prompts share prefix blocks."""
    found = []
    for index, salt in enumerate((None, "mine", "mine", None)):
        request = computed(
            engine, prompt="The same prompt of more than one block. " * 3, cache_salt=salt, max_tokens=1
        )
        engine.add_request(replace(request, request_id=f"salted {index}"))
        found += [output.num_cached_tokens > 0 for output in engine.step()]
    assert found == [False, False, True, True]
