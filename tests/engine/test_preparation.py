"""Requests that are prepared in other threads, beside the engine's steps."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from pagefleet.engine import (
    EngineConfig,
    EngineRequest,
    FinishReason,
    InvalidRequestError,
    LLMEngine,
    NullOptions,
    SamplingParams,
)
from pagefleet.engine.core.block_hashes import hash_blocks, hash_salt
from pagefleet.engine.structured.structured_output import StructuredOutput


def make_engine(**fields) -> LLMEngine:
    return LLMEngine.from_config(
        EngineConfig(model="null", backend="null", null=NullOptions(step_time_s=0), **fields)
    )


def some_requests(engine: LLMEngine) -> list[EngineRequest]:
    """Requests of all kinds, some of them with what an earlier attempt generated."""
    plain = SamplingParams(max_tokens=40, seed=3)
    grammar = engine.compile_grammar(StructuredOutput(regex="[ab]{5,30}"))
    requests = []
    for index in range(24):
        prompt = [(index % 3 * 7 + place) % 256 for place in range(20 + index)]
        request = EngineRequest(f"{index}", prompt, replace(plain, seed=index))
        variants = (
            {},
            {"logs": [list(b"some text")]},
            {"sampling_params": replace(plain, stop=("q", "xy")), "logs": [list(b"x")]},
            {"sampling_params": replace(plain, n=3), "logs": [(65, 66), None]},
            {"grammar": grammar, "logs": [list(b"ab")]},
            {"prefix_cache": False, "cache_salt": "s"},
            {"logs": [[65] * 40]},
            {"sampling_params": replace(plain, bad_words=("ab",), repetition_penalty=1.5)},
        )
        requests.append(replace(request, **variants[index % len(variants)]))
    return requests


def step_into(found: dict, engine: LLMEngine) -> None:
    for output in engine.step():
        tokens, ends = found[output.request_id, output.choice]
        tokens += zip(output.token_ids, output.texts, strict=True)
        if output.finish_reason is not None:
            ends.append((output.finish_reason, output.stop_reason))


def test_prepared_in_other_threads_the_tokens_and_texts_are_the_same():
    expected, found = (defaultdict(lambda: ([], [])) for _ in range(2))
    engine = make_engine()
    for request in some_requests(engine):
        engine.add_request(request)
    while engine.has_unfinished_requests:
        step_into(expected, engine)

    engine = make_engine()
    with ThreadPoolExecutor(4) as threads:
        for prepared in threads.map(engine.prepare, some_requests(engine)):
            engine.add_request(prepared)
            step_into(found, engine)
    while engine.has_unfinished_requests:
        step_into(found, engine)
    engine.check_integrity()
    assert found == expected
    assert found["6", 0] == ([], [(FinishReason.LENGTH, None)])


def test_everything_that_grows_with_the_prompt_is_done_before_the_request_is_added():
    engine = make_engine(block_size=16)
    prompt, log = [index % 250 for index in range(1000)], list(range(50))
    before = engine.stats()
    prepared = engine.prepare(
        EngineRequest("a", prompt, SamplingParams(max_tokens=90, n=2), logs=[log], cache_salt="salt")
    )
    assert engine.stats() == before
    assert not engine.has_unfinished_requests

    with_log, without = (new.sequence for new in prepared.choices)
    assert with_log.token_ids.tolist() == prompt + log
    assert with_log.block_hashes == hash_blocks(hash_salt("salt"), np.array(prompt + log), 16)
    assert without.block_hashes == with_log.block_hashes[:62]

    engine.add_request(prepared)
    while engine.has_unfinished_requests:
        engine.step()
    engine.check_integrity()


@pytest.mark.parametrize(
    ("fields", "config"), [({"prefix_cache": False}, {}), ({}, {"enable_prefix_caching": False})]
)
def test_blocks_that_nobody_looks_up_are_not_hashed(fields, config):
    prepared = make_engine(**config).prepare(EngineRequest("a", [1] * 100, SamplingParams(), **fields))
    assert prepared.choices[0].sequence.block_hashes == []


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt_token_ids": []}, "empty_prompt", "prompt_token_ids"),
        ({"prompt_token_ids": [1] * 5000}, "context_length", "prompt_token_ids"),
        ({"prompt_token_ids": [1, 259]}, "token_out_of_vocabulary", "prompt_token_ids"),
        ({"prompt_token_ids": [1, 2**70]}, "token_out_of_vocabulary", "prompt_token_ids"),
        ({"prompt_token_ids": [1.5]}, "invalid_type", "prompt_token_ids"),
        ({"logs": [[1], [2]]}, "invalid_value", "logs"),
        ({"logs": [[300]]}, "token_out_of_vocabulary", "logs"),
        ({"sampling_params": SamplingParams(logit_bias={400: 1.0})}, "token_out_of_vocabulary", "logit_bias"),
    ],
)
def test_a_mistake_is_found_before_the_request_is_added(fields, code, param):
    engine = make_engine()
    with pytest.raises(InvalidRequestError) as raised:
        engine.prepare(replace(EngineRequest("a", [1], SamplingParams()), **fields))
    assert (raised.value.code, raised.value.param) == (code, param)


def test_what_depends_on_the_other_requests_is_checked_when_it_is_added():
    engine = make_engine(num_blocks=4, block_size=16)
    prepared = [engine.prepare(EngineRequest("a", [1], SamplingParams(max_tokens=9))) for _ in range(2)]
    engine.add_request(prepared[0])
    with pytest.raises(InvalidRequestError, match="already in use"):
        engine.add_request(prepared[1])
    engine.abort("a")
    engine.add_request(prepared[1])

    with pytest.raises(InvalidRequestError, match="tokens of KV cache"):
        engine.add_request(engine.prepare(EngineRequest("b", [1], SamplingParams(max_tokens=100))))
    engine.check_integrity()
