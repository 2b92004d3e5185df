"""SamplingParams: every mistake is named."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from pagefleet.engine.errors import InvalidRequestError
from pagefleet.engine.sampling.sampling_params import SamplingParams

NAN, INFINITY = float("nan"), float("inf")


def test_the_defaults_sample_from_the_whole_distribution():
    params = SamplingParams()
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1.0, 0, 1.0, 0.0)
    assert params.seed is None


def test_lists_become_tuples_and_one_stop_string_becomes_a_tuple():
    params = SamplingParams(stop="end", stop_token_ids=[1, 2], logit_bias={5: 1.0})
    assert params.stop == ("end",)
    assert params.stop_token_ids == (1, 2)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(bad_words="damn").bad_words == ("damn",)
    assert SamplingParams(allowed_token_ids=[3, 1]).allowed_token_ids == (3, 1)
    assert SamplingParams(logit_bias={7: 1, 2: -0.5}) == SamplingParams(logit_bias=((2, -0.5), (7, 1)))
    # Hashable and picklable: it crosses process boundaries.
    assert pickle.loads(pickle.dumps(params)) == params
    assert len({params, SamplingParams(stop=("end",), stop_token_ids=(1, 2), logit_bias={5: 1})}) == 1


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("max_tokens", 1),
        ("min_tokens", 256),
        ("temperature", 0),
        ("temperature", 3.5),
        ("top_k", 2**31 - 1),
        ("top_p", 1),
        ("top_p", 1e-9),
        ("min_p", 1.0),
        ("typical_p", 1e-9),
        ("repetition_penalty", 1e-3),
        ("repetition_penalty", 1e6),
        ("presence_penalty", -2),
        ("frequency_penalty", 2.0),
        ("seed", 0),
        ("seed", 2**64 - 1),
    ],
)
def test_the_ends_of_the_ranges_are_fine(param: str, value: Any):
    assert getattr(SamplingParams(**{param: value}), param) == value


@pytest.mark.parametrize(
    ("param", "value", "code"),
    [
        ("max_tokens", 0, "invalid_value"),
        ("max_tokens", 1.5, "invalid_type"),
        ("max_tokens", True, "invalid_type"),
        ("max_tokens", None, "invalid_type"),
        ("min_tokens", -1, "invalid_value"),
        ("min_tokens", 257, "invalid_value"),
        ("temperature", -0.1, "invalid_value"),
        ("temperature", NAN, "invalid_value"),
        ("temperature", INFINITY, "invalid_value"),
        ("temperature", "1", "invalid_type"),
        ("top_k", -1, "invalid_value"),
        ("top_k", 2**31, "invalid_value"),
        ("top_p", 0.0, "invalid_value"),
        ("top_p", 1.1, "invalid_value"),
        ("min_p", -0.1, "invalid_value"),
        ("min_p", 1.1, "invalid_value"),
        ("typical_p", 0.0, "invalid_value"),
        ("typical_p", 1.1, "invalid_value"),
        ("repetition_penalty", 0, "invalid_value"),
        ("repetition_penalty", -1.0, "invalid_value"),
        ("repetition_penalty", 1.1e6, "invalid_value"),
        ("repetition_penalty", INFINITY, "invalid_value"),
        ("presence_penalty", 2.1, "invalid_value"),
        ("presence_penalty", NAN, "invalid_value"),
        ("frequency_penalty", -2.1, "invalid_value"),
        ("frequency_penalty", "1", "invalid_type"),
        ("logit_bias", {1: 100.5}, "invalid_value"),
        ("logit_bias", {-1: 1.0}, "invalid_value"),
        ("logit_bias", {"1": 1.0}, "invalid_type"),
        ("logit_bias", {1: "much"}, "invalid_type"),
        ("logit_bias", 5, "invalid_type"),
        ("allowed_token_ids", [], "invalid_value"),
        ("allowed_token_ids", [-1], "invalid_value"),
        ("allowed_token_ids", [1.5], "invalid_type"),
        ("bad_words", [""], "invalid_value"),
        ("bad_words", [" "], "invalid_value"),
        ("bad_words", [1], "invalid_type"),
        ("seed", -1, "invalid_value"),
        ("seed", 2**64, "invalid_value"),
        ("seed", 0.5, "invalid_type"),
        ("stop", "", "invalid_value"),
        ("stop", ["a", ""], "invalid_value"),
        ("stop", [1], "invalid_type"),
        ("stop", 1, "invalid_type"),
        ("stop_token_ids", [-1], "invalid_value"),
        ("stop_token_ids", ["a"], "invalid_type"),
        ("stop_token_ids", "12", "invalid_type"),
        ("stop_token_ids", 5, "invalid_type"),
        ("ignore_eos", 1, "invalid_type"),
        ("skip_special_tokens", "no", "invalid_type"),
        ("include_stop_str_in_output", None, "invalid_type"),
    ],
)
def test_a_mistake_names_its_parameter(param: str, value: Any, code: str):
    with pytest.raises(InvalidRequestError) as raised:
        SamplingParams(**{param: value})
    assert raised.value.param == param
    assert raised.value.code == code
    assert str(raised.value).startswith(param)
    assert str(raised.value).endswith(".")
