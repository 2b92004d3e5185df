"""Two steps in flight: what ends, leaves or repeats between the first and the second."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, NullOptions, SamplingParams
from pagefleet.engine.execution.executor import Executor, StepResult
from pagefleet.engine.execution.step_input import StepInput
from pagefleet.engine.loading import null_loader

BLOCK_SIZE = 4


class SlowExecutor(Executor):
    """Waits before each step until the test lets it begin, then reads the block tables."""

    def __init__(self) -> None:
        self.may_begin = threading.Semaphore(0)
        self.blocks: list[Any] = []

    def execute(self, step: StepInput) -> StepResult:
        assert self.may_begin.acquire(timeout=30)
        self.blocks.append(step.block_tables(BLOCK_SIZE).tolist())
        return StepResult(np.full(len(step.batch), 97))

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


def make_engine(**options: Any) -> LLMEngine:
    null = NullOptions(step_time_s=0, **options)
    return LLMEngine.from_config(
        EngineConfig(model="null", backend="null", block_size=BLOCK_SIZE, overlap_steps=True, null=null)
    )


def test_a_step_uses_its_own_blocks_after_another_sequence_got_the_slot():
    config = EngineConfig(model="null", backend="null", block_size=BLOCK_SIZE, overlap_steps=True)
    executor = SlowExecutor()
    engine = LLMEngine(replace(null_loader.load(config), executor=executor), config)
    engine.add_request(EngineRequest("a", [1] * 6, SamplingParams(max_tokens=9, speculate=False)))
    for _ in range(2):
        engine.submit(engine.schedule())
    executor.may_begin.release()
    engine.take()
    engine.abort("a")
    engine.add_request(EngineRequest("b", [2] * 40, SamplingParams(max_tokens=9)))
    assert engine.schedule().slots.tolist() == [0]
    executor.may_begin.release()
    engine.take()
    assert executor.blocks[1] == executor.blocks[0]


def test_a_sequence_without_a_token_does_not_fail_the_step_behind_it(tiny_bytes, monkeypatch):
    runner, num_forwards = type(tiny_bytes.executor), []
    sample, forward = runner._token_ids, runner._forward

    def sample_all_but_one(self: Any, logits: Any, batch: Any, masks: Any) -> Any:
        token_ids = sample(self, logits, batch, masks)
        return np.where((batch.seed == 7) & (batch.position == 2), logits.shape[-1], token_ids)

    monkeypatch.setattr(runner, "_token_ids", sample_all_but_one)
    monkeypatch.setattr(runner, "_forward", lambda *args: num_forwards.append(1) or forward(*args))
    config = EngineConfig(model="tiny", overlap_steps=True, num_speculative_tokens=0)
    engine = LLMEngine(replace(tiny_bytes, info=replace(tiny_bytes.info, num_blocks=64)), config)
    for name, seed in (("good", 1), ("bad", 7)):
        params = SamplingParams(max_tokens=6, seed=seed, ignore_eos=True)
        engine.add_request(EngineRequest(name, [65], params))
    tokens: dict[str, list[int]] = {"good": [], "bad": []}
    while engine.has_unfinished_requests:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
    assert {name: len(ids) for name, ids in tokens.items()} == {"good": 6, "bad": 2}
    assert len(num_forwards) == 6


def test_a_step_whose_sequences_all_ended_is_taken():
    """Otherwise its time would include the pause before the next request, and lower the token budget."""
    engine = make_engine()
    engine.add_request(EngineRequest("a", [1], SamplingParams(max_tokens=9)))
    for _ in range(3):
        engine.step()
    engine.abort("a")
    assert engine.num_in_flight == 1
    assert engine.has_unfinished_requests
    assert engine.step() == []
    assert engine.num_in_flight == 0
    assert not engine.has_unfinished_requests


def test_a_sequence_that_repeats_itself_has_drafts():
    engine = make_engine(period=7)
    engine.add_request(EngineRequest("a", [1], SamplingParams(max_tokens=200)))
    while engine.has_unfinished_requests:
        engine.step()
    assert engine.stats().num_accepted_tokens > 100
    assert engine.stats().num_steps < 60
