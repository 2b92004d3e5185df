"""A request of the wire as the engine takes it."""

from __future__ import annotations

import pytest

from pagefleet.api.fleet import prepare
from pagefleet.api.model_cards import CardIndex
from pagefleet.engine import EngineConfig, LLMEngine, NullOptions, SamplingParams
from pagefleet.workers.model_card import make_card
from pagefleet.workers.prompt import engine_request
from pagefleet.workers.settings import WorkerSettings

EVERY_PARAMETER = {
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
}


@pytest.fixture(scope="module")
def engine():
    return LLMEngine.from_config(EngineConfig(model="null", backend="null", null=NullOptions(step_time_s=0)))


def test_every_parameter_reaches_the_engine_as_the_client_gave_it(engine):
    assert list(EVERY_PARAMETER) == list(SamplingParams.__dataclass_fields__)
    card = make_card(WorkerSettings(model="null", backend="null"), engine)
    prepared = prepare(CardIndex([card]), None, {"prompt": "Hello", **EVERY_PARAMETER}, seed=1)
    # As it is stored, and read again by any worker.
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
