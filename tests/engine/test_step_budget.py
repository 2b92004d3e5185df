"""A step's tokens follow the time that steps take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, NullOptions, SamplingParams
from pagefleet.engine.core.step_budget import StepBudget, StepCost
from pagefleet.engine.execution import step_pipeline
from pagefleet.engine.execution.null_executor import NullExecutor
from pagefleet.engine.loading import null_loader


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


def test_it_begins_at_the_rate_of_the_warm_up():
    # 0.6 s of the 0.75 are to be used; a step costs 32 tokens more than it has.
    assert StepBudget(8192, 0.75, token_s=0.001).num_tokens == 568
    assert StepBudget(512, 0.75, token_s=0.0001).num_tokens == 512
    assert StepBudget(512, 0.75, token_s=1.0).num_tokens == 16


def test_a_short_step_that_is_late_counts_and_one_that_is_quick_does_not():
    budget = StepBudget(8192, 0.75, token_s=0.001)
    budget.observe(8, 0.001)
    assert budget.num_tokens == 568
    budget.observe(8, 0.8)
    assert budget.num_tokens == 16


@pytest.mark.parametrize("num_context", [0, 10, 1000, 8000, 100_000])
@pytest.mark.parametrize("budget", [1, 2, 16, 17, 100, 5000])
def test_a_chunk_costs_what_is_left(num_context, budget):
    cost = StepCost(1 / 3000)
    most = cost.max_num_tokens(budget, num_context)
    assert 1 <= most <= budget
    assert most <= 16 or cost.of(most, num_context) <= budget
    assert cost.of(most + 2, num_context) > budget
    assert StepCost().max_num_tokens(budget, num_context) == budget == StepCost().of(budget, num_context)


# As SmolLM2-135M on two quiet cores.
CONTEXT_WEIGHT, TOKEN_S, LIMIT_S = 1 / 3072, 0.00045, 0.75


def seconds(num_tokens: int, num_context: int) -> float:
    """Weights that are read, tokens, comparisons with the context, the context that is read."""
    compared = num_tokens * (num_context + num_tokens / 2) + 40 * num_context
    return TOKEN_S * (25 + num_tokens + CONTEXT_WEIGHT * compared)


class SlowExecutor(NullExecutor):
    """Its clock goes on by what its steps would last."""

    def __init__(self) -> None:
        super().__init__(NullOptions(step_time_s=0.0))
        self.now = 0.0
        self.steps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def finish(self, step):
        lens = zip(step.query_lens.tolist(), step.context_lens.tolist(), strict=True)
        self.steps.append(sum(seconds(num_new, num_computed) for num_new, num_computed in lens))
        self.now += self.steps[-1]
        return super().finish(step)


def test_without_a_time_limit_tokens_are_counted_and_not_their_cost():
    """A prompt that fits `max_num_batched_tokens` is one step; a smaller one is filled at any context."""
    options = NullOptions(max_model_len=8192)
    for most, sizes in ((8192, [7530]), (3000, [3000, 3000, 1530])):
        config = EngineConfig(model="null", backend="null", null=options, max_num_batched_tokens=most)
        loaded = replace(null_loader.load(config), context_weight=CONTEXT_WEIGHT)
        engine = LLMEngine(loaded, config)
        engine.add_request(EngineRequest("a", [65] * 7530, SamplingParams(max_tokens=1)))
        seen = []
        while engine.has_unfinished_requests:
            plan = engine.schedule()
            seen += [entry.num_new_tokens for entry in plan.scheduled]
            engine.execute(plan)
        assert seen == sizes


@pytest.mark.parametrize("token_s", [TOKEN_S, 1.5 * TOKEN_S, 0.6 * TOKEN_S])
def test_a_prompt_of_7530_tokens_takes_little_longer_in_steps_than_in_one(token_s, monkeypatch):
    """Also if the warm-up was not quite right; and no step lasts longer than a quarter of the lease."""
    options = NullOptions(max_model_len=8192)
    config = EngineConfig(model="null", backend="null", null=options, max_step_s=LIMIT_S)
    executor = SlowExecutor()
    loaded = replace(
        null_loader.load(config), executor=executor, token_s=token_s, context_weight=CONTEXT_WEIGHT
    )
    monkeypatch.setattr(step_pipeline, "time", executor)
    engine = LLMEngine(loaded, config)
    engine.add_request(EngineRequest("a", [65] * 7530, SamplingParams(max_tokens=1)))
    while engine.has_unfinished_requests:
        engine.step()
    assert sum(executor.steps) < 1.3 * seconds(7530, 0)
    assert max(executor.steps[1:]) <= LIMIT_S
    assert executor.steps[0] <= LIMIT_S * max(1, TOKEN_S / token_s)
