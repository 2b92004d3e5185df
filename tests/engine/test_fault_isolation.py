"""A step that fails costs nobody a token but the sequence that it fails for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest

from pagefleet.engine import (
    LLM,
    EngineConfig,
    EngineRequest,
    FinishReason,
    LLMEngine,
    NullOptions,
    SamplingParams,
    StructuredOutput,
)
from pagefleet.engine.core.speculation import Speculation
from pagefleet.engine.errors import EngineFailedError
from pagefleet.engine.execution import step_input
from pagefleet.engine.execution.executor import Executor
from pagefleet.engine.execution.null_executor import NullExecutor, null_token
from pagefleet.engine.fault_isolation import FaultIsolation
from pagefleet.engine.loading import null_loader
from pagefleet.engine.sampling.logit_rules import LogitRules

NUM_TOKENS = 12
BAD, LOST = [*b"<fault step>"], [*b"<fault device>"]


def make_engine(**fields: Any) -> LLMEngine:
    options = NullOptions(step_time_s=0, faults=True)
    return LLMEngine.from_config(EngineConfig(model="null", backend="null", null=options, **fields))


def add(engine: LLMEngine, name: str, prompt: list[int], **params: Any) -> None:
    given = {"max_tokens": NUM_TOKENS, "seed": int(name), **params}
    engine.add_request(EngineRequest(name, [*prompt, int(name)], SamplingParams(**given)))


def run(engine: LLMEngine) -> dict[str, list[Any]]:
    """The tokens of each request, then its finish reason."""
    steps, told = FaultIsolation(engine), defaultdict[str, list[Any]](list)
    while engine.has_unfinished_requests:
        for output in steps.step():
            told[output.request_id] += output.token_ids
            if output.finish_reason is not None:
                told[output.request_id].append(output.finish_reason)
        engine.check_integrity()
    assert engine.num_free_blocks == engine.stats().num_blocks
    return dict(told)


def whole(name: str) -> list[Any]:
    return [*(null_token(int(name), 0, at) for at in range(NUM_TOKENS)), FinishReason.LENGTH]


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("bad", [{0}, {17}, {39}, {3, 4}, {0, 20, 39}, set(range(1, 40))])
def test_of_forty_only_those_that_the_step_fails_for_end(bad: set[int], overlaps: bool):
    engine = make_engine(overlap_steps=overlaps)
    for index in range(40):
        add(engine, str(index), BAD if index in bad else [65])
    told = run(engine)
    for index in range(40):
        assert told[str(index)] == ([FinishReason.ERROR] if index in bad else whole(str(index)))
    stats = engine.stats()
    assert stats.num_generation_tokens == (40 - len(bad)) * NUM_TOKENS
    assert stats.num_prompt_tokens_computed == (40 - len(bad)) * 2


def test_what_is_told_of_it_is_why():
    engine = make_engine()
    add(engine, "1", BAD)
    add(engine, "2", [65])
    steps = FaultIsolation(engine)
    outputs = [output for _ in range(5) for output in steps.step()]
    (bad,) = [output for output in outputs if output.request_id == "1"]
    assert bad.stop_reason == (
        "The engine cannot compute this sequence: The null device fails on this batch."
    )


def test_a_step_that_fails_once_costs_nobody_anything():
    for num_failures in (1, 2):
        engine = make_engine()
        for index in range(5):
            add(engine, str(index), [65])
        _fail(engine, num_failures)
        assert run(engine) == {str(index): whole(str(index)) for index in range(5)}
    # Alone it is tried once more.
    engine = make_engine()
    add(engine, "1", [65])
    _fail(engine, 1)
    assert run(engine) == {"1": whole("1")}


def test_if_nothing_can_be_computed_the_engine_has_failed_and_nobody_else():
    engine = make_engine()
    for index in range(5):
        add(engine, str(index), BAD)
    with pytest.raises(EngineFailedError, match="None of the step's sequences could be computed") as raised:
        run(engine)
    assert raised.value.request_ids == ["0", "1", "2", "3", "4"]
    assert engine.stats().num_running == 5
    engine.check_integrity()


def test_a_lost_device_is_not_tried_again():
    engine = make_engine()
    for index in range(5):
        add(engine, str(index), LOST if index == 3 else [65])
    executor = engine._executor
    calls = []
    submit = executor.submit
    executor.submit = lambda step: calls.append(len(step)) or submit(step)
    with pytest.raises(EngineFailedError, match="The device is lost") as raised:
        run(engine)
    assert calls == [5]
    assert raised.value.request_ids == ["0", "1", "2", "3", "4"]


def test_one_that_is_cancelled_while_its_step_is_tried_again_is_gone():
    engine = make_engine()
    for index in range(4):
        add(engine, str(index), BAD if index == 3 else [65])
    steps = FaultIsolation(engine)
    assert steps.step() == []
    engine.abort("1")
    engine.abort("3")
    told = [output.request_id for _ in range(20) for output in steps.step()]
    assert set(told) == {"0", "2"}
    assert not engine.has_unfinished_requests


def test_a_failed_step_leaves_everything_as_it_was():
    """Drafts, penalties and a grammar among it: the run is the one without a failure."""
    assert _story(num_failures=1) == _story(num_failures=0)


def _story(num_failures: int) -> dict[str, list[Any]]:
    """Each step fails so often before it is computed."""
    engine = make_engine(num_speculative_tokens=4)
    add(engine, "1", [65], repetition_penalty=1.5, frequency_penalty=0.5)
    add(engine, "2", [*b"abcdabcdabcd"], allowed_token_ids=[97, 98])
    grammar = engine.compile_grammar(StructuredOutput(regex="(ab|cd){2,9}"))
    prompt = [*b"cdcdababcdcdabab"]
    engine.add_request(EngineRequest("3", prompt, SamplingParams(max_tokens=8, seed=3), grammar=grammar))
    steps, told = FaultIsolation(engine), defaultdict[str, list[Any]](list)
    while engine.has_unfinished_requests:
        if not steps._parts:
            _fail(engine, num_failures)
        for output in steps.step():
            told[output.request_id] += [*output.token_ids, *filter(None, [output.finish_reason])]
        engine.check_integrity()
    assert engine.stats().num_draft_tokens > 0
    return dict(told)


def _fail(engine: LLMEngine, num_times: int) -> None:
    """The next calls of the executor raise, after they have done their work."""
    executor = engine._executor
    left = [num_times]

    def failing(step: Any) -> Any:
        result = executor.finish(step)
        if left[0]:
            left[0] -= 1
            raise RuntimeError("for once")
        return result

    executor.execute = failing
    executor.submit = lambda step: Executor.submit(executor, step)


def test_the_library_s_users_lose_one_answer_and_not_all():
    llm = LLM("null", backend="null", null=NullOptions(step_time_s=0, faults=True))
    answers = llm.generate(["a", "<fault step>", "b"], SamplingParams(max_tokens=3, seed=1))
    assert [answer.choices[0].finish_reason for answer in answers] == ["length", "error", "length"]
    with pytest.raises(EngineFailedError):
        llm.generate("<fault device>")


class _Bad(Exception):
    pass


@pytest.fixture
def calls(tiny_bytes, monkeypatch) -> list[int]:
    """How many sequences each forward pass had."""
    calls: list[int] = []
    execute = type(tiny_bytes.executor).execute
    monkeypatch.setattr(
        type(tiny_bytes.executor),
        "execute",
        lambda self, step: calls.append(len(step)) or execute(self, step),
    )
    return calls


def _real_engine(loaded: Any) -> LLMEngine:
    info = replace(loaded.info, num_blocks=64)
    return LLMEngine(replace(loaded, info=info), EngineConfig(model="tiny"))


def test_a_rule_that_fails_ends_its_sequence_without_a_second_forward_pass(tiny_bytes, calls, monkeypatch):
    forbidden = LogitRules.forbidden

    def picky(self: LogitRules, token_ids: Any) -> list[int]:
        if token_ids[0] == 1:
            raise _Bad
        return forbidden(self, token_ids)

    monkeypatch.setattr(LogitRules, "forbidden", picky)
    engine = _real_engine(tiny_bytes)
    for name in "0123":
        params = {"temperature": 0, "repetition_penalty": 1.1, "ignore_eos": True, "max_tokens": 4}
        engine.add_request(EngineRequest(name, [int(name), 70], SamplingParams(**params)))
    told = run(engine)
    assert told["1"] == [FinishReason.ERROR]
    assert [len(told[name]) for name in "023"] == [5, 5, 5]
    assert calls == [4, 3, 3, 3]


def test_a_rule_that_cannot_be_prepared_ends_its_sequence(tiny_bytes, monkeypatch):
    prepare = step_input.row_rules

    def picky(row: int, sequence: Any, drafts: Any) -> Any:
        if sequence.request_id == "1":
            raise _Bad
        return prepare(row, sequence, drafts)

    monkeypatch.setattr(step_input, "row_rules", picky)
    engine = _real_engine(tiny_bytes)
    for name in "0123":
        params = {"temperature": 0, "repetition_penalty": 1.1, "ignore_eos": True, "max_tokens": 4}
        engine.add_request(EngineRequest(name, [int(name), 70], SamplingParams(**params)))
    told = run(engine)
    assert told["1"] == [FinishReason.ERROR]
    assert [len(told[name]) for name in "023"] == [5, 5, 5]


@pytest.mark.parametrize("place", ["copy", "narrow", "accept", "num_valid"])
def test_a_grammar_that_fails_ends_its_sequence_without_a_second_forward_pass(
    place: str, tiny_bytes, calls, monkeypatch
):
    engine = _real_engine(tiny_bytes)
    for name in "0123":
        grammar = engine.compile_grammar(StructuredOutput(regex="[a-d]{9}"))
        params = SamplingParams(temperature=0, max_tokens=6)
        engine.add_request(EngineRequest(name, [int(name), *b"abcdabcd"], params, grammar=grammar))
    (bad,) = engine._sequences["1"]

    class Panic(BaseException):
        """As pyo3's."""

    def panics(*_: Any) -> Any:
        raise Panic

    monkeypatch.setattr(type(bad.grammar), place, _only(bad.grammar, place, panics))
    told = run(engine)
    for name in "023":
        assert told[name][-1] == FinishReason.LENGTH, told[name]
    if place in ("narrow", "accept"):
        assert told["1"][-1] == FinishReason.ERROR
    assert max(calls) == 4
    assert calls.count(4) <= 6


def _only(one: Any, name: str, fails: Any) -> Any:
    original = getattr(type(one), name)
    return lambda self, *args: fails() if self is one else original(self, *args)


def test_a_mask_that_fails_for_the_batch_is_computed_row_by_row(tiny_bytes, calls):
    engine = _real_engine(tiny_bytes)
    for name in "0123":
        grammar = engine.compile_grammar(StructuredOutput(regex="[a-d]{9}"))
        params = SamplingParams(temperature=0, max_tokens=3, speculate=False)
        engine.add_request(EngineRequest(name, [int(name)], params, grammar=grammar))
    (bad,) = engine._sequences["1"]
    matcher = bad.grammar.matcher
    masks = tiny_bytes.executor._masks

    class Library:
        def __init__(self, real: Any) -> None:
            self.real = real

        def unsafe_compute_mask_ptr(self, entries: Any, *rest: Any) -> None:
            if any(each is matcher for each, _ in entries):
                raise _Bad
            self.real.unsafe_compute_mask_ptr(entries, *rest)

    from llguidance import LLExecutor

    masks._library = Library(LLExecutor())
    try:
        told = run(engine)
    finally:
        masks._library = None
    assert told["1"] == [FinishReason.ERROR]
    assert [len(told[name]) for name in "023"] == [4, 4, 4]
    assert calls == [4, 3, 3]


def test_guesses_that_cannot_be_made_cost_guesses_alone(monkeypatch):
    def fails(self: Speculation, *_: Any) -> list[int]:
        raise _Bad

    monkeypatch.setattr(Speculation, "_draft", fails)
    engine = make_engine(num_speculative_tokens=4)
    add(engine, "1", [65])
    assert run(engine) == {"1": whole("1")}


def test_what_a_step_found_and_cannot_be_booked_is_the_engine_s_failure(monkeypatch):
    engine = make_engine()
    add(engine, "1", [65])
    monkeypatch.setattr(engine._scheduler.bookings, "commit", lambda *_: 1 / 0)
    with pytest.raises(EngineFailedError, match="could not be processed"):
        run(engine)


def test_faults_are_off_where_nobody_asks_for_them():
    executor = null_loader.load(EngineConfig(model="null", backend="null")).executor
    assert isinstance(executor, NullExecutor)
    assert not executor._options.faults
