"""A step's tokens follow the time that steps take."""

from __future__ import annotations

import pytest

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, NullOptions, SamplingParams
from pagefleet.engine.step_budget import StepBudget


def test_without_a_limit_the_budget_stays():
    budget = StepBudget(512, None)
    budget.observe(512, 100.0)
    assert budget.num_tokens == 512


def test_nothing_is_known_at_first():
    assert StepBudget(512, 0.75).num_tokens == 64
    assert StepBudget(32, 0.75).num_tokens == 32


def test_it_doubles_while_full_steps_are_quick():
    budget = StepBudget(512, 0.75)
    seen = []
    for _ in range(6):
        budget.observe(budget.num_tokens, 0.01)
        seen.append(budget.num_tokens)
    assert seen == [128, 256, 512, 512, 512, 512]


def test_a_quick_step_that_was_not_full_says_nothing():
    budget = StepBudget(512, 0.75)
    budget.observe(8, 0.001)
    assert budget.num_tokens == 64


@pytest.mark.parametrize("token_s", [0.0005, 0.002, 0.01])
def test_it_settles_below_the_limit(token_s):
    budget = StepBudget(2048, 0.75)
    steps = []
    for _ in range(50):
        steps.append(budget.num_tokens * token_s)
        budget.observe(budget.num_tokens, steps[-1])
    assert max(steps[10:]) <= 0.75
    assert min(steps[10:]) >= 0.75 * 0.25


def test_it_never_stops_the_engine():
    budget = StepBudget(512, 0.1)
    for _ in range(20):
        budget.observe(budget.num_tokens, 60.0)
    assert budget.num_tokens == 16


def test_the_engine_obeys_it():
    null = NullOptions(step_time_s=0.0, token_time_s=0.001)
    limits = {"max_step_s": 0.1, "max_num_batched_tokens": 2048}
    config = EngineConfig(model="null", backend="null", null=null, num_speculative_tokens=0, **limits)
    engine = LLMEngine.from_config(config)
    engine.add_request(EngineRequest("a", list(range(100)) * 8, SamplingParams(max_tokens=2)))
    sizes = []
    while engine.has_unfinished_requests:
        plan = engine.schedule()
        sizes.append(sum(entry.num_new_tokens for entry in plan.scheduled))
        engine.execute(plan)
    assert sum(sizes) == 801
    assert max(sizes) <= 128
