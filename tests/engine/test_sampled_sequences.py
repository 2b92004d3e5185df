"""Whole sequences with any sampling parameters, through the engine and a small model in float64."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagefleet.engine import EngineConfig, EngineRequest, InvalidRequestError, LLMEngine, SamplingParams
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.execution.executor import LoadedModel
from pagefleet.engine.loading.generation_config import default_sampling, read_generation_config
from pagefleet.engine.outputs import FinishReason
from pagefleet.engine.sampling.logit_rules import make_logit_rules
from pagefleet.engine.text.bad_words import bad_word_token_ids
from pagefleet.engine.text.tokenizer import ByteTokenizer

VOCAB_SIZE = 97
EOS = 2
NUM_TOKENS = 14
PROMPT = [1, 5, 9, 40, 41, 42, 43, 44]


def make_engine(tiny: LoadedModel, num_blocks: int = 64, **options: Any) -> LLMEngine:
    info = replace(tiny.info, num_blocks=num_blocks)
    return LLMEngine(
        replace(tiny, info=info), EngineConfig(model="tiny", max_num_batched_tokens=40, **options)
    )


def run(engine: LLMEngine, *requests: EngineRequest) -> dict[str, list[int]]:
    for request in requests:
        engine.add_request(request)
    outputs: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while engine.has_unfinished_requests:
        for output in engine.step():
            outputs[output.request_id] += output.token_ids
            assert output.finish_reason is not FinishReason.ERROR, output.stop_reason
    engine.check_integrity()
    return outputs


token_ids = st.integers(0, VOCAB_SIZE - 1)
params = st.builds(
    SamplingParams,
    max_tokens=st.just(NUM_TOKENS),
    min_tokens=st.sampled_from([0, 6, NUM_TOKENS]),
    temperature=st.sampled_from([0.0, 0.8, 2.0]),
    top_k=st.sampled_from([0, 5, 30]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.05]),
    typical_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, -0.5]),
    logit_bias=st.dictionaries(token_ids, st.floats(-5, 5), max_size=4),
    allowed_token_ids=st.none()
    | st.lists(token_ids.filter(lambda t: t not in (EOS, 65)), min_size=3, max_size=40),
    bad_words=st.sampled_from([(), ("A",), ("AB", "Z")]),
    ignore_eos=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(params, st.integers(1, 8), st.integers(0, NUM_TOKENS)), min_size=2, max_size=6))
def test_alone_in_company_preempted_and_resumed_it_is_the_same(tiny, mixture):
    """Given requests with any parameters: each gets the same tokens alone, in a batch of all, in one that has
    too few blocks for all, with steps that overlap, and continued from any prefix of its log."""
    requests = [
        EngineRequest(str(index), [*PROMPT[:length], index + 10], one)
        for index, (one, length, _) in enumerate(mixture)
    ]
    alone = {request.request_id: run(make_engine(tiny), request)[request.request_id] for request in requests}
    assert run(make_engine(tiny), *requests) == alone
    assert run(make_engine(tiny, num_blocks=8), *requests) == alone
    assert run(make_engine(tiny, num_blocks=8, overlap_steps=True), *requests) == alone
    logs = {str(index): alone[str(index)][:cut] for index, (_, _, cut) in enumerate(mixture)}
    resumed = [replace(request, logs=[logs[request.request_id]]) for request in requests]
    rest = run(make_engine(tiny), *resumed)
    assert {name: logs[name] + rest[name] for name in rest} == alone


def test_eight_blocks_are_too_few_for_the_test_above(tiny):
    engine = make_engine(tiny, num_blocks=8)
    longest = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
    run(engine, *(EngineRequest(str(index), PROMPT, longest) for index in range(6)))
    assert engine.stats().num_preemptions > 3


def generate(tiny: LoadedModel, **fields: Any) -> list[int]:
    fields = {"max_tokens": 40, "seed": 1, "temperature": 1.0, "ignore_eos": True} | fields
    return run(make_engine(tiny), EngineRequest("a", PROMPT, SamplingParams(**fields)))["a"]


def test_each_rule_shows_in_the_tokens(tiny):
    free = generate(tiny, temperature=0.0)
    apart = generate(
        tiny, temperature=0.0, frequency_penalty=2.0, presence_penalty=2.0, repetition_penalty=9.0
    )
    assert len(set(apart)) > len(set(free))
    assert set(generate(tiny, allowed_token_ids=[50, 51])) == {50, 51}
    assert set(generate(tiny, temperature=0.0, logit_bias={60: 100})) == {60}
    assert free[0] not in generate(tiny, temperature=0.0, logit_bias={free[0]: -100})


def test_bad_words_never_come_to_an_end(tiny):
    """Given the letters A and B alone, B never follows A; and where B itself is bad too, there is no B."""
    letters = [ord("A"), ord("B")]
    both = generate(tiny, allowed_token_ids=letters, temperature=5.0)
    assert letters in [both[i : i + 2] for i in range(len(both))]
    apart = generate(tiny, allowed_token_ids=letters, temperature=5.0, bad_words=["AB"])
    assert letters not in [apart[i : i + 2] for i in range(len(apart))]
    assert set(apart) == set(letters)
    assert set(generate(tiny, allowed_token_ids=letters, temperature=5.0, bad_words=["B"])) == {ord("A")}


def test_a_bad_word_begins_in_the_output():
    """Given a prompt that ends as a bad word begins: the prompt is not ours, the word may be completed."""
    rules = make_logit_rules(SamplingParams(), 2, bad_words=[(1, 2), (1, 1, 3)])
    assert rules is not None
    assert rules.forbidden([1, 1]) == []
    assert rules.forbidden([1, 1, 1]) == [2]
    assert rules.forbidden([1, 1, 1, 1]) == [2, 3]


def test_before_min_tokens_no_end_is_chosen(tiny):
    """Given a bias that makes ends certain, they come exactly when they may."""
    for end in (
        {"ignore_eos": False, "logit_bias": {EOS: 100}},
        {"stop_token_ids": [7], "logit_bias": {7: 100}},
    ):
        tokens = generate(tiny, **end)
        assert len(tokens) == 1
        later = generate(tiny, min_tokens=5, **end)
        assert len(later) == 6
        assert later[-1] == tokens[0]
        assert tokens[0] not in later[:-1]


def test_a_request_that_allows_nothing_says_so(tiny):
    engine = make_engine(tiny)
    nothing = SamplingParams(allowed_token_ids=[ord("A")], bad_words=["A"])
    engine.add_request(EngineRequest("a", PROMPT, nothing))
    [output] = engine.step()
    assert output.finish_reason is FinishReason.ERROR
    assert "parameters allow no token" in str(output.stop_reason)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": [1, VOCAB_SIZE]}, "allowed_token_ids"),
        ({"logit_bias": {VOCAB_SIZE: 1.0}}, "logit_bias"),
        ({"bad_words": ["a"]}, "bad_words"),
    ],
)
def test_a_token_that_the_model_does_not_know_is_refused(tiny, fields, param):
    engine = make_engine(tiny)
    with pytest.raises(InvalidRequestError) as raised:
        engine.add_request(EngineRequest("a", PROMPT, SamplingParams(**fields)))
    assert (raised.value.code, raised.value.param) == ("token_out_of_vocabulary", param)
    assert not engine.has_unfinished_requests


WORDS = {"cat": [1], " cat": [2], "dog house": [3, 4], " dog house": [5, 4], "emu": [6], " emu": [7, 6]}


class WordTokenizer(ByteTokenizer):
    """Knows three words, and how they are cut after a blank."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return WORDS.get(text, [])


def test_bad_words_are_cut_as_at_the_beginning_of_a_text_and_after_a_blank():
    """The second only where it is as long and begins with another token."""
    ids = bad_word_token_ids(["cat", " dog house", "emu"], WordTokenizer(), 100)
    assert ids == [[1], [2], [3, 4], [5, 4], [6]]
    with pytest.raises(InvalidRequestError, match="no tokens of 'owl'"):
        bad_word_token_ids(["owl"], WordTokenizer(), 100)


def test_generation_config_gives_what_a_request_could_ask_for(tmp_path, caplog):
    """Given a file as they come, its sampling parameters under our names, without nonsense and without the
    rest."""
    file = tmp_path / "generation_config.json"
    assert read_generation_config(tmp_path) == {}
    theirs = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    others = {"max_new_tokens": 2048, "min_p": 7, "do_sample": True, "eos_token_id": [1, 2]}
    file.write_text(json.dumps(theirs | others))
    assert default_sampling(read_generation_config(tmp_path)) == theirs | {"max_tokens": 2048}
    assert "min_p is ignored" in caplog.text
    # It may name the tokens that end an answer, so a broken file is not passed over.
    file.write_text("{")
    with pytest.raises(ModelLoadError, match=r"generation_config\.json is not valid JSON"):
        read_generation_config(tmp_path)
