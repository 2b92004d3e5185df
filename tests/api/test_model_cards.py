"""What a model's card allows, as the producer and the worker both see it."""

from __future__ import annotations

import pytest

from pagefleet.api.contract.errors import ContextTooLong, InvalidRequest, UnknownModel
from pagefleet.api.contract.messages import Fingerprint, ModelCard, SamplingDefaults
from pagefleet.api.contract.model_cards import CardIndex, check_fits, check_limits, check_prompt_length
from pagefleet.api.contract.requests import build_request
from pagefleet.api.protocol.prepared import prepare

FINGERPRINT = Fingerprint(weights="w", tokenizer="t", dtype="none", backend="null", version="0")


def card(name="small", *, aliases=(), max_model_len=16, vocab_size=100):
    return ModelCard(
        name=name, max_model_len=max_model_len, vocab_size=vocab_size, aliases=list(aliases),
        max_queue_depth=10, fingerprint=FINGERPRINT,
    )  # fmt: skip


def request(**fields):
    return build_request({"model": "small", "max_tokens": 4, **fields})


def test_a_model_is_found_by_its_name_and_by_its_aliases():
    index = CardIndex([card("small", aliases=["s", "tiny"]), card("large")])
    assert [index.resolve(name).name for name in ("small", "s", "tiny", "large")] == ["small"] * 3 + ["large"]
    assert "tiny" in index
    assert "huge" not in index


def test_a_name_goes_before_another_models_alias():
    index = CardIndex([card("large", aliases=["small"]), card("small")])
    assert index.resolve("small").name == "small"


def test_without_a_name_the_only_model_is_meant():
    assert CardIndex([card("small")]).resolve(None).name == "small"


def test_without_a_name_a_choice_must_be_made():
    with pytest.raises(
        UnknownModel, match="this fleet has several models; choose one of large, small"
    ) as raised:
        CardIndex([card("small"), card("large")]).resolve(None)
    assert raised.value.param == "model"


def test_without_any_card_nothing_is_known():
    with pytest.raises(UnknownModel, match="no models yet"):
        CardIndex([]).resolve(None)


def test_an_unknown_model_names_the_known_ones_and_the_command():
    with pytest.raises(UnknownModel, match="'huge' is unknown; this fleet has large, small") as raised:
        CardIndex([card("small"), card("large")]).resolve("huge")
    assert "pagefleet worker --model huge" in raised.value.message


def test_a_models_workers_bound_how_long_results_are_kept():
    mine = card().model_copy(update={"max_result_ttl_s": 100})
    check_limits(request(prompt="x", result_ttl_s=100), mine)
    with pytest.raises(
        InvalidRequest, match=r"result_ttl_s: 101 is more than small allows.* 100 s"
    ) as raised:
        prepare(CardIndex([mine]), None, {"prompt": "x", "max_tokens": 4, "result_ttl_s": 101}, 1)
    assert raised.value.param == "result_ttl_s"


def test_more_choices_than_a_tenant_may_ever_have():
    mine = card().model_copy(update={"max_tenant_depth": 2})
    check_limits(request(prompt="x", n=3), mine)
    check_limits(request(prompt="x", n=2, tenant="t"), mine)
    with pytest.raises(InvalidRequest, match=r"n: 3 choices .* 2 at most") as raised:
        check_limits(request(prompt="x", n=3, tenant="t"), mine)
    assert raised.value.param == "n"


def test_the_context_holds_the_prompt_and_one_token():
    check_fits(request(prompt_token_ids=[1] * 15), card())
    with pytest.raises(
        ContextTooLong, match="16 tokens do not fit the context of small, which has 16"
    ) as raised:
        check_fits(request(prompt_token_ids=[1] * 16), card())
    assert raised.value.param == "prompt_token_ids"


def test_a_text_is_left_to_the_worker():
    check_fits(request(prompt="x" * 1000), card())
    with pytest.raises(ContextTooLong) as raised:
        check_prompt_length(1000, card())
    assert raised.value.param == "prompt"


def test_max_tokens_ends_at_the_context():
    check_fits(request(prompt="x", max_tokens=16), card())
    with pytest.raises(
        InvalidRequest, match="max_tokens: 17 is more than the context of small; ask for 16"
    ) as raised:
        check_fits(request(prompt="x", max_tokens=17), card())
    assert raised.value.param == "max_tokens"


@pytest.mark.parametrize("param", ["prompt_token_ids", "stop_token_ids"])
def test_token_ids_are_those_of_the_vocabulary(param):
    fields = {"prompt_token_ids": [0]} | {param: [0, 99]}
    check_fits(request(**fields), card())
    with pytest.raises(InvalidRequest, match=rf"{param}: token id 100 is outside") as raised:
        check_fits(request(**fields | {param: [0, 100]}), card())
    assert raised.value.param == param


def test_the_default_of_max_tokens_fits_a_short_context():
    short = card("short", max_model_len=100)
    prepared = prepare(CardIndex([short]), None, {"prompt": "x"}, 1)
    assert prepared.request.sampling.max_tokens == 100
    with pytest.raises(InvalidRequest, match="context of short"):
        prepare(CardIndex([short]), None, {"prompt": "x", "max_tokens": 101}, 1)


def test_a_models_own_defaults_stand_where_a_request_says_nothing():
    """Given a card with defaults, they fill what is missing, never what was said; the job keeps them."""
    recommended = SamplingDefaults(temperature=0.6, top_p=0.95, max_tokens=7)
    index = CardIndex([card().model_copy(update={"default_sampling": recommended})])
    sampling = prepare(index, None, {"prompt": "x", "top_p": 1.0, "top_k": 5}, 1).request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.6, 1.0, 5, 7)
    bounded = prepare(CardIndex([card()]), None, {"prompt": "x"}, 1).request.sampling
    assert (bounded.temperature, bounded.max_tokens) == (1.0, 16)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": [1, 100]}, "allowed_token_ids"),
        ({"logit_bias": {"100": 1.0}}, "logit_bias"),
        ({"stop_token_ids": [100]}, "stop_token_ids"),
    ],
)
def test_token_ids_of_parameters_are_checked_against_the_vocabulary(fields, param):
    with pytest.raises(InvalidRequest, match="token id 100 is outside") as raised:
        check_fits(request(prompt="x", **fields), card(vocab_size=100))
    assert raised.value.param == param
