"""Several choices of one request: one prompt, one draw each, each with its own log."""

from __future__ import annotations

from collections import defaultdict

import pytest

from pagefleet.engine import (
    EngineConfig,
    EngineRequest,
    FinishReason,
    InvalidRequestError,
    LLMEngine,
    NullOptions,
    SamplingParams,
    StructuredOutput,
)
from pagefleet.engine.execution.null_executor import null_token

BLOCK_SIZE = 4


def make_engine(**fields) -> LLMEngine:
    defaults = {"num_blocks": 600, "block_size": BLOCK_SIZE, "max_num_seqs": 64}
    options = {"model": "null", "backend": "null", "null": NullOptions(step_time_s=0), **defaults, **fields}
    return LLMEngine.from_config(EngineConfig(**options))


def run(engine: LLMEngine, request: EngineRequest) -> dict[int, list[int]]:
    engine.add_request(request)
    tokens, ends = defaultdict(list), {}
    while engine.has_unfinished_requests:
        for output in engine.step():
            assert output.request_id == request.request_id
            assert output.choice not in ends
            tokens[output.choice] += output.token_ids
            if output.finish_reason is not None:
                ends[output.choice] = output.finish_reason
        engine.check_integrity()
    assert set(ends.values()) == {FinishReason.LENGTH}
    return dict(tokens)


def expected(choice: int, num_tokens: int) -> list[int]:
    return [null_token(5, choice, position) for position in range(num_tokens)]


def test_each_choice_is_drawn_by_itself():
    tokens = run(make_engine(), EngineRequest("a", [1, 2, 3], SamplingParams(n=7, max_tokens=20, seed=5)))
    assert tokens == {choice: expected(choice, 20) for choice in range(7)}


def test_the_prompt_is_computed_once_and_its_blocks_are_shared():
    engine = make_engine()
    request = EngineRequest("a", [7] * 512, SamplingParams(n=32, max_tokens=8, seed=5))
    engine.add_request(request)
    while engine.stats().num_running < 32:
        engine.step()
    num_shared, num_own = 511 // BLOCK_SIZE, 32
    assert engine.info.num_blocks - engine.num_free_blocks <= num_shared + num_own * 2
    while engine.has_unfinished_requests:
        engine.step()
    # Each computes the last block again, for the logits that it draws from.
    assert engine.stats().num_prompt_tokens_computed == 512 + 31 * BLOCK_SIZE
    assert engine.num_free_blocks == engine.info.num_blocks


@pytest.mark.parametrize(
    "fields", [{"num_blocks": 12}, {"enable_prefix_caching": False}, {"max_num_seqs": 2}]
)
def test_with_too_little_room_for_all_of_them_they_are_the_same(fields):
    engine = make_engine(**fields)
    request = EngineRequest("a", [7] * 10, SamplingParams(n=6, max_tokens=20, seed=5))
    assert run(engine, request) == {choice: expected(choice, 20) for choice in range(6)}
    assert "num_blocks" not in fields or engine.stats().num_preemptions > 0


def test_they_go_on_from_their_logs_and_those_that_had_ended_stay_silent():
    params = SamplingParams(n=5, max_tokens=9, seed=5)
    logs = [expected(0, 3), None, (), expected(3, 8)]
    rest = run(make_engine(), EngineRequest("a", [1, 2], params, logs=logs))
    assert rest == {
        0: expected(0, 9)[3:],
        2: expected(2, 9),
        3: expected(3, 9)[8:],
        4: expected(4, 9),
    }


def test_a_log_that_ends_its_choice_says_so_and_the_others_go_on():
    params = SamplingParams(n=2, max_tokens=3, seed=5)
    engine = make_engine()
    engine.add_request(EngineRequest("a", [1, 2], params, logs=[expected(0, 3)]))
    ended, first = engine.step()
    assert (ended.choice, ended.token_ids, ended.finish_reason) == (0, (), FinishReason.LENGTH)
    assert (first.choice, first.token_ids) == (1, tuple(expected(1, 1)))
    assert engine.abort("a")
    assert not engine.has_unfinished_requests


def test_an_abort_ends_them_all():
    engine = make_engine(max_num_seqs=3)
    engine.add_request(EngineRequest("a", [1, 2, 3], SamplingParams(n=6, max_tokens=50)))
    for _ in range(4):
        engine.step()
    assert engine.abort("a")
    assert not engine.abort("a")
    assert engine.num_free_blocks == engine.info.num_blocks
    assert not engine.has_unfinished_requests
    engine.check_integrity()


def test_each_has_a_grammar_of_its_own():
    engine = make_engine()
    grammar = engine.compile_grammar(StructuredOutput(regex="[a-z]{4}"))
    engine.add_request(EngineRequest("a", [1], SamplingParams(n=4, max_tokens=9, seed=1), grammar=grammar))
    texts = defaultdict(str)
    while engine.has_unfinished_requests:
        for output in engine.step():
            texts[output.choice] += output.text
    assert len(texts) == 4
    assert all(len(text) == 4 and text.islower() for text in texts.values())
    assert len(set(texts.values())) > 1


@pytest.mark.parametrize(
    ("fields", "logs", "param"),
    [
        ({"n": 0}, (), "n"),
        ({"n": 129}, (), "n"),
        ({"n": 2}, ([], [], []), "logs"),
        ({"n": 2}, ([999],), "logs"),
    ],
)
def test_a_wrong_number_is_refused(fields, logs, param):
    engine = make_engine()
    with pytest.raises(InvalidRequestError) as refusal:
        engine.add_request(EngineRequest("a", [1], SamplingParams(**fields), logs=logs))
    assert refusal.value.param == param
    assert not engine.has_unfinished_requests
