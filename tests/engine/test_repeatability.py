"""The same request again: what makes its tokens differ, and what `prefix_cache=False` takes away of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, NullOptions, SamplingParams
from pagefleet.engine.core.scheduler_output import SchedulerOutput

PROMPT = [*b"A prompt of some length, longer than three blocks of sixteen tokens each"]


def run(engine: LLMEngine, name: str, **fields: Any) -> tuple[list[int], list[SchedulerOutput], int]:
    """The tokens, the steps, and how many tokens the prefix cache had."""
    params = fields.pop("params", SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))
    engine.add_request(EngineRequest(name, PROMPT, params, **fields))
    token_ids, steps, num_cached = [], [], 0
    while engine.has_unfinished_requests:
        steps.append(engine.schedule())
        for output in engine.execute(steps[-1]):
            if output.request_id == name:
                token_ids += output.token_ids
                num_cached = output.num_cached_tokens
        engine.check_integrity()
    return token_ids, steps, num_cached


def null_engine() -> LLMEngine:
    options = NullOptions(step_time_s=0)
    return LLMEngine.from_config(EngineConfig(model="null", backend="null", null=options))


def test_without_the_prefix_cache_a_request_computes_all_and_leaves_nothing():
    engine = null_engine()
    assert run(engine, "a")[2] == 0
    # What "a" left is not looked at
    assert run(engine, "b", prefix_cache=False)[2] == 0
    stats = engine.stats()
    assert (stats.prefix_cache_queries, stats.num_prompt_tokens_computed) == (len(PROMPT), 2 * len(PROMPT))
    # And is still there
    assert run(engine, "c")[2] == 64

    engine = null_engine()
    run(engine, "a", prefix_cache=False)
    assert engine._block_manager.num_cached_blocks == 0
    assert run(engine, "b")[2] == 0


def test_without_the_prefix_cache_nobody_waits_for_another_s_blocks():
    engine = null_engine()
    params = SamplingParams(max_tokens=2)
    for name, uses_it in (("a", True), ("b", False), ("c", False)):
        engine.add_request(EngineRequest(name, PROMPT, params, prefix_cache=uses_it))
    assert [entry.num_new_tokens for entry in engine.schedule().scheduled] == [len(PROMPT)] * 3


def test_each_choice_computes_its_prompt_without_the_prefix_cache():
    engine = null_engine()
    _, steps, _ = run(engine, "a", prefix_cache=False, params=SamplingParams(n=3, max_tokens=1))
    assert [entry.num_new_tokens for entry in steps[0].scheduled] == [len(PROMPT)] * 3


def real_engine(loaded: Any, **fields: Any) -> LLMEngine:
    return LLMEngine(
        replace(loaded, info=replace(loaded.info, num_blocks=64)), EngineConfig(model="tiny", **fields)
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_num_batched_tokens": 7},
        {"num_speculative_tokens": 0},
        {"enable_prefix_caching": False},
    ],
    ids=["prefix hit", "other chunks", "no speculation", "no cache"],
)
def test_in_float64_no_cause_changes_a_token(tiny_bytes, fields: dict[str, Any]):
    assert tiny_bytes.info.fingerprint.dtype == "float64"
    engine = real_engine(tiny_bytes)
    first = run(engine, "a")[0]
    again = engine if not fields else real_engine(tiny_bytes, **fields)
    assert run(again, "b")[0] == first


def test_alone_without_cache_and_speculation_a_request_is_computed_in_the_same_steps_again(tiny_bytes):
    """So it has the same rounding in every dtype, as long as a prompt takes one step."""
    engine = real_engine(tiny_bytes, max_num_batched_tokens=512)
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, speculate=False)
    shapes = []
    for name in "abc":
        _, steps, _ = run(engine, name, params=params, prefix_cache=False)
        shapes.append([[entry.num_new_tokens for entry in step.scheduled] for step in steps])
    assert shapes[0] == shapes[1] == shapes[2] == [[len(PROMPT)]] + [[1]] * 11
    # With the cache, the second one begins where the first one's blocks end.
    _, steps, _ = run(engine, "d", params=params)
    _, steps, num_cached = run(engine, "e", params=params)
    assert num_cached > 0
    assert steps[0].scheduled[0].num_new_tokens == len(PROMPT) - num_cached
