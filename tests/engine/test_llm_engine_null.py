"""LLMEngine end to end on the null backend: real scheduling, blocks, text and stops; made-up tokens."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from pagefleet.engine import (
    EngineConfig,
    EngineRequest,
    FinishReason,
    InvalidRequestError,
    LLMEngine,
    NullOptions,
    SamplingParams,
    SequenceOutput,
)
from pagefleet.engine.errors import EngineAsleepError
from pagefleet.engine.execution.executor import Executor, StepResult
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.engine.execution.step_input import StepInput
from pagefleet.engine.loading import null_loader
from pagefleet.engine.structured.structured_output import StructuredOutput
from pagefleet.engine.text.tokenizer import ByteTokenizer, TokenDecoder

EOS = ByteTokenizer.EOS_TOKEN_ID


def make_config(**fields: Any) -> EngineConfig:
    defaults = {"model": "null", "backend": "null", "null": NullOptions(step_time_s=0), "block_size": 4}
    return EngineConfig(**(defaults | fields))


def make_engine(**fields: Any) -> LLMEngine:
    return LLMEngine.from_config(make_config(**fields))


@dataclass
class Record:
    """One request's outputs, joined; checks that they join."""

    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    first_offset: int | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    num_cached_tokens: int = 0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, output: SequenceOutput) -> None:
        assert self.finish_reason is None, "an output after the last"
        if self.first_offset is None:
            self.first_offset = output.offset
        assert output.offset == self.first_offset + len(self.token_ids)
        self.token_ids += output.token_ids
        self.texts += output.texts
        self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason
        self.num_cached_tokens = output.num_cached_tokens


def step_into(records: dict[str, Record], engine: LLMEngine) -> None:
    for output in engine.step():
        records[output.request_id].add(output)
    engine.check_integrity()


def run_to_end(engine: LLMEngine) -> dict[str, Record]:
    records: dict[str, Record] = defaultdict(Record)
    while engine.has_unfinished_requests:
        step_into(records, engine)
    assert engine.num_free_blocks == engine.stats().num_blocks
    return dict(records)


def generate(request: EngineRequest, *, script: list[int] | None = None, **fields: Any) -> Record:
    """Run one request alone; `script`: the tokens that the model shall give."""
    fields = {"num_blocks": 100} | fields
    if script is None:
        engine = make_engine(**fields)
    else:
        engine = scripted_engine({request.request_id: script}, **fields)
    engine.add_request(request)
    return run_to_end(engine)[request.request_id]


class ScriptedExecutor(Executor):
    """Gives each request the tokens that a test wants; counts what it computes."""

    def __init__(self, scripts: dict[str, list[int]]) -> None:
        self.scripts = scripts
        self.num_computed_tokens = 0
        self.failures = 0
        self.is_closed = False

    def execute(self, step: StepInput) -> StepResult:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("device lost")
        self.num_computed_tokens += len(step.token_ids)
        rows = zip(step.rows.entries.tolist(), step.batch.position.tolist(), strict=True)
        tokens = [self._token(step.guests.sequences[entry].request_id, position) for entry, position in rows]
        return StepResult(np.array(tokens, dtype=np.int64))

    def _token(self, request_id: str, position: int) -> int:
        script = self.scripts[request_id]
        # A wrong draft may be verified after the script's end.
        return script[position] if position < len(script) else 0

    def sleep(self) -> None:
        self.is_closed = True

    def wake(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def scripted_engine(scripts: dict[str, list[int]], **fields: Any) -> LLMEngine:
    config = make_config(**fields)
    return LLMEngine(replace(null_loader.load(config), executor=ScriptedExecutor(scripts)), config)


def executor_of(engine: LLMEngine) -> ScriptedExecutor:
    assert isinstance(engine._executor, ScriptedExecutor)
    return engine._executor


def test_a_request_gets_its_tokens_one_a_step():
    engine = make_engine()
    engine.add_request(EngineRequest("a", [1, 2, 3], SamplingParams(max_tokens=3, seed=5)))
    expected = [null_token(5, 0, position) for position in range(3)]

    outputs = [engine.step() for _ in range(3)]

    assert [[output.offset for output in step] for step in outputs] == [[0], [1], [2]]
    assert [step[0].token_ids for step in outputs] == [(token_id,) for token_id in expected]
    assert "".join(step[0].text for step in outputs) == bytes(expected).decode()
    assert [step[0].finish_reason for step in outputs] == [None, None, FinishReason.LENGTH]
    assert not engine.has_unfinished_requests
    assert engine.step() == []


def test_null_tokens_are_golden_and_printable():
    # A changed function would change what a resumed run gives: it must be noticed.
    assert bytes(null_token(1, 0, position) for position in range(8)) == b"t_7g7/JM"
    assert bytes(null_token(2**64 - 1, 3, position) for position in range(8)) == b"*$T6TswM"


def requests_of_every_kind(num_requests: int) -> list[EngineRequest]:
    draw = random.Random(7)
    return [
        EngineRequest(
            f"r{index}",
            [draw.randrange(4) for _ in range(draw.randint(1, 60))],
            SamplingParams(
                max_tokens=draw.randint(1, 40), seed=index, stop=draw.choice([(), ("e",), ("ab", "c")])
            ),
            priority=draw.choice([0, 0, 1]),
        )
        for index in range(num_requests)
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"num_blocks": 1000},
        {"num_blocks": 1000, "max_num_batched_tokens": 7},
        {"num_blocks": 1000, "max_num_seqs": 1},
        {"num_blocks": 30},
        {"num_blocks": 30, "enable_prefix_caching": False},
        {"num_blocks": 1000, "overlap_steps": True},
        {"num_blocks": 30, "max_num_batched_tokens": 7, "overlap_steps": True},
    ],
    ids=[
        "in one batch",
        "in small chunks",
        "one by one",
        "preempted",
        "preempted without a cache",
        "overlapped",
        "overlapped, preempted",
    ],
)
def test_tokens_and_text_do_not_depend_on_the_batch(fields: dict[str, Any]):
    requests = requests_of_every_kind(40)
    alone = {request.request_id: generate(request) for request in requests}

    engine = make_engine(**fields)
    records: dict[str, Record] = defaultdict(Record)
    # They come a few at a time, while others run.
    for index, request in enumerate(requests):
        engine.add_request(request)
        if index % 3 == 0:
            step_into(records, engine)
    while engine.has_unfinished_requests:
        step_into(records, engine)

    assert set(records) == set(alone)
    for request_id, record in records.items():
        # The batch decides what the prefix cache saves, and nothing else.
        assert replace(record, num_cached_tokens=0) == alone[request_id]
    if fields["num_blocks"] == 30:
        assert engine.stats().num_preemptions > 0


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 2**64 - 1),
    max_tokens=st.integers(1, 60),
    # Of 95 printable characters: these come up, also within and across other stop strings.
    stop=st.sampled_from([(), ("a",), ("e", "eb"), ("~", "!", "zz")]),
    include_stop=st.booleans(),
)
def test_resumed_from_any_prefix_of_its_log_a_request_goes_on_the_same(
    data: st.DataObject, seed: int, max_tokens: int, stop: tuple[str, ...], include_stop: bool
):
    params = SamplingParams(
        max_tokens=max_tokens, seed=seed, stop=stop, include_stop_str_in_output=include_stop
    )
    whole = generate(EngineRequest("a", [1, 2, 3, 4, 5], params))
    cut = data.draw(st.integers(0, len(whole.token_ids)))

    resumed = generate(EngineRequest("a", [1, 2, 3, 4, 5], params, logs=[whole.token_ids[:cut]]))

    assert resumed.first_offset == cut
    assert resumed.token_ids == whole.token_ids[cut:]
    # The whole log: its text was sent with its last token, only the reason is told again.
    assert resumed.texts == whole.texts[cut:]
    assert (resumed.finish_reason, resumed.stop_reason) == (whole.finish_reason, whole.stop_reason)


def test_a_log_is_computed_with_the_prompt_and_not_generated_again():
    log = [null_token(5, 0, position) for position in range(6)]
    request = EngineRequest("a", [1, 2, 3], SamplingParams(max_tokens=8, seed=5), logs=[log])
    engine = make_engine(num_speculative_tokens=0)
    engine.add_request(request)
    output = engine.schedule()
    assert [entry.num_new_tokens for entry in output.scheduled] == [9]
    # It has tokens already: this is no first prefill.
    assert output.first_prefills == []
    assert engine.execute(output)[0].offset == 6
    assert engine.stats().num_prompt_tokens_computed == 3


def test_an_unconfirmed_request_is_computed_after_its_confirmation():
    engine = make_engine()
    engine.add_request(EngineRequest("a", [1, 2, 3], SamplingParams(max_tokens=1)), is_confirmed=False)
    assert engine.step() == []
    assert [sequence.request_id for sequence in engine.schedule().unconfirmed] == ["a"]
    engine.confirm("a")
    engine.confirm("not here")
    assert [output.request_id for output in engine.step()] == ["a"]
    # And one that is aborted before leaves nothing
    engine.add_request(EngineRequest("b", [1, 2, 3], SamplingParams(max_tokens=1)), is_confirmed=False)
    engine.step()
    assert engine.abort("b")
    engine.confirm("b")
    engine.check_integrity()
    assert (engine.has_unfinished_requests, engine.num_free_blocks) == (False, engine.stats().num_blocks)


@pytest.mark.parametrize(
    ("params", "log", "finish_reason", "stop_reason"),
    [
        ({"max_tokens": 3}, b"abc", FinishReason.LENGTH, None),
        ({"max_tokens": 3}, b"abcde", FinishReason.LENGTH, None),
        ({"max_tokens": 8}, [*b"ab", EOS], FinishReason.STOP, None),
        ({"max_tokens": 8, "stop_token_ids": [99]}, b"abc", FinishReason.STOP, 99),
        ({"max_tokens": 8, "stop": ("bc",)}, b"abc", FinishReason.STOP, "bc"),
        ({"max_tokens": 99}, b"a" * 27, FinishReason.LENGTH, None),
    ],
    ids=["max_tokens", "more than max_tokens", "eos", "stop token", "stop string", "context"],
)
def test_a_log_that_ends_its_sequence_ends_it_at_once(
    params: dict[str, Any], log: list[int], finish_reason: FinishReason, stop_reason: str | int | None
):
    engine = make_engine(max_model_len=32)
    request = EngineRequest("a", [1, 2, 3, 4, 5], SamplingParams(**params), logs=[list(log)])
    engine.add_request(request)
    assert engine.has_unfinished_requests
    assert engine.step() == [
        SequenceOutput("a", 0, len(log), (), (), finish_reason, stop_reason, num_cached_tokens=0)
    ]
    assert not engine.has_unfinished_requests
    assert engine.stats().num_steps == 0


def test_the_end_of_sequence_token_ends_it_without_a_text():
    script = [*b"ab", EOS, *b"cd"]
    request = EngineRequest("a", [1], SamplingParams(max_tokens=5))
    record = generate(request, script=script)
    assert (record.token_ids, record.text) == ([*b"ab", EOS], "ab")
    assert (record.finish_reason, record.stop_reason) == (FinishReason.STOP, None)

    ignoring = replace(request, sampling_params=SamplingParams(max_tokens=5, ignore_eos=True))
    record = generate(ignoring, script=script)
    assert (record.text, record.finish_reason) == ("abcd", FinishReason.LENGTH)

    later = replace(request, sampling_params=SamplingParams(max_tokens=5, min_tokens=4))
    assert generate(later, script=script).text == "abcd"


def test_a_stop_token_ends_it_and_its_text_is_kept_only_where_asked_for():
    script = list(b"abcd")
    params = SamplingParams(max_tokens=4, stop_token_ids=[98])
    record = generate(EngineRequest("a", [1], params), script=script)
    assert (record.token_ids, record.text, record.stop_reason) == ([97, 98], "a", 98)
    params = SamplingParams(max_tokens=4, stop_token_ids=[98], include_stop_str_in_output=True)
    assert generate(EngineRequest("a", [1], params), script=script).text == "ab"


def test_text_held_back_for_a_stop_string_comes_with_the_last_token():
    params = SamplingParams(max_tokens=3, stop="cde")
    record = generate(EngineRequest("a", [1], params), script=list(b"bcd"))
    assert record.texts == ["b", "", "cd"]
    assert record.finish_reason is FinishReason.LENGTH

    record = generate(EngineRequest("a", [1], params), script=[*b"bc", EOS])
    assert record.texts == ["b", "", "c"]
    assert record.finish_reason is FinishReason.STOP


def test_generation_stops_where_the_context_ends():
    # The cache holds the context and no more: that is enough, whatever max_tokens says.
    request = EngineRequest("a", [1] * 10, SamplingParams(max_tokens=100))
    record = generate(request, max_model_len=16, num_blocks=4)
    assert len(record.token_ids) == 6
    assert record.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt_token_ids": []}, "empty_prompt", "prompt_token_ids"),
        ({"prompt_token_ids": [1] * 64}, "context_length", "prompt_token_ids"),
        ({"prompt_token_ids": [1, 259]}, "token_out_of_vocabulary", "prompt_token_ids"),
        ({"prompt_token_ids": [-1]}, "token_out_of_vocabulary", "prompt_token_ids"),
        ({"prompt_token_ids": [1.5]}, "invalid_type", "prompt_token_ids"),
        ({"prompt_token_ids": ["a"]}, "invalid_type", "prompt_token_ids"),
        ({"logs": [[300]]}, "token_out_of_vocabulary", "logs"),
        ({"request_id": "known"}, "duplicate_request", "request_id"),
        ({"request_id": "ended"}, "duplicate_request", "request_id"),
        ({"prompt_token_ids": [1] * 40}, "exceeds_capacity", "max_tokens"),
    ],
)
def test_a_mistake_is_refused_and_changes_nothing(fields: dict[str, Any], code: str, param: str):
    engine = make_engine(max_model_len=64, num_blocks=12)
    engine.add_request(EngineRequest("known", [1], SamplingParams(max_tokens=1)))
    engine.add_request(EngineRequest("ended", [1], SamplingParams(max_tokens=1), logs=[[2]]))
    request = replace(EngineRequest("a", [1, 2], SamplingParams(max_tokens=20)), **fields)

    with pytest.raises(InvalidRequestError) as raised:
        engine.add_request(request)

    assert (raised.value.code, raised.value.param) == (code, param)
    engine.check_integrity()
    assert set(run_to_end(engine)) == {"known", "ended"}


def test_an_aborted_request_gives_its_blocks_back_at_once():
    engine = make_engine(max_num_seqs=1)
    for request_id in ("running", "waiting", "stays"):
        engine.add_request(EngineRequest(request_id, [1] * 9, SamplingParams(max_tokens=4)))
    engine.add_request(EngineRequest("ended", [1], SamplingParams(max_tokens=1), logs=[[2]]))
    output = engine.schedule()
    assert engine.num_free_blocks < engine.stats().num_blocks

    # Between a step's decision and the step
    assert engine.abort("running")
    assert engine.num_free_blocks == engine.stats().num_blocks
    assert engine.abort("waiting")
    assert engine.abort("ended")
    assert not engine.abort("running")
    assert not engine.abort("never seen")
    assert engine.execute(output) == []

    assert set(run_to_end(engine)) == {"stays"}
    # The name is free again.
    engine.add_request(EngineRequest("running", [1], SamplingParams(max_tokens=1)))
    assert set(run_to_end(engine)) == {"running"}


def test_the_more_urgent_request_goes_first():
    engine = make_engine(max_num_seqs=1)
    for request_id, priority in (("batch", 0), ("interactive", 1)):
        engine.add_request(EngineRequest(request_id, [1], SamplingParams(max_tokens=1), priority=priority))
    assert [engine.step()[0].request_id for _ in range(2)] == ["interactive", "batch"]


def test_a_seed_is_drawn_for_a_request_without_one():
    engine = make_engine()
    for request_id in ("a", "b"):
        engine.add_request(EngineRequest(request_id, [1], SamplingParams(max_tokens=32)))
    records = run_to_end(engine)
    assert records["a"].token_ids != records["b"].token_ids


def test_a_sequence_whose_logits_were_of_no_use_ends_alone():
    engine = scripted_engine({"bad": [97, 5000], "good": [97, 98, 99]})
    for request_id in ("bad", "good"):
        engine.add_request(EngineRequest(request_id, [1], SamplingParams(max_tokens=3)))
    records = run_to_end(engine)
    assert records["bad"].token_ids == [97]
    assert records["bad"].finish_reason is FinishReason.ERROR
    assert "logits" in str(records["bad"].stop_reason)
    assert records["good"].text == "abc"
    assert engine.stats().num_generation_tokens == 4


class PickyTokenizer(ByteTokenizer):
    """Fails on one token, as a tokenizer may that isn't ours."""

    def decoder(
        self,
        skip_special_tokens: bool = True,
        kept: Collection[str] = (),
        prompt_token_ids: Sequence[int] = (),
    ) -> TokenDecoder:
        return _PickyDecoder()


class _PickyDecoder(TokenDecoder):
    def step(self, token_id: int) -> str:
        return "ab?d"[token_id] if token_id != 2 else str([][token_id])

    def flush(self) -> str:
        return ""


def test_a_sequence_whose_text_cannot_be_made_ends_alone(caplog: pytest.LogCaptureFixture):
    config = make_config()
    loaded = replace(
        null_loader.load(config),
        executor=ScriptedExecutor({"bad": [0, 2], "good": [0, 1, 3]}),
        tokenizer=PickyTokenizer(),
    )
    engine = LLMEngine(loaded, config)
    for request_id in ("bad", "good"):
        engine.add_request(EngineRequest(request_id, [1], SamplingParams(max_tokens=3)))
    records = run_to_end(engine)
    assert records["bad"].finish_reason is FinishReason.ERROR
    assert records["good"].text == "abd"
    assert "bad" in caplog.text


def test_a_step_that_raises_can_be_tried_again():
    engine = scripted_engine({"a": list(b"abc"), "ended": []})
    engine.add_request(EngineRequest("a", [1] * 6, SamplingParams(max_tokens=3)))
    engine.add_request(EngineRequest("ended", [1], SamplingParams(max_tokens=1), logs=[[2]]))
    executor_of(engine).failures = 1
    with pytest.raises(RuntimeError, match="device lost"):
        engine.step()
    records = run_to_end(engine)
    assert records["a"].text == "abc"
    assert records["ended"].finish_reason is FinishReason.LENGTH


def test_a_common_prefix_is_computed_once_and_told_to_the_user():
    engine = scripted_engine({"a": [97], "b": [97], "salted": [97]})
    prompt = list(range(41))
    engine.add_request(EngineRequest("a", prompt, SamplingParams(max_tokens=1)))
    assert run_to_end(engine)["a"].num_cached_tokens == 0
    assert executor_of(engine).num_computed_tokens == 41

    engine.add_request(EngineRequest("b", [*prompt, 1], SamplingParams(max_tokens=1)))
    assert run_to_end(engine)["b"].num_cached_tokens == 40
    assert executor_of(engine).num_computed_tokens == 43

    salted = EngineRequest("salted", prompt, SamplingParams(max_tokens=1), cache_salt="other tenant")
    engine.add_request(salted)
    assert run_to_end(engine)["salted"].num_cached_tokens == 0
    stats = engine.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (41 + 42 + 41, 40)


def test_the_figures_add_up():
    engine = make_engine(num_blocks=100, max_num_seqs=2)
    for index in range(3):
        request = EngineRequest(str(index), [index] * 10, SamplingParams(max_tokens=2))
        engine.add_request(request)
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.last_step_num_seqs) == (2, 1, 2)
    assert (stats.num_blocks, stats.num_free_blocks) == (100, 94)
    assert (stats.num_steps, stats.num_generation_tokens, stats.num_prompt_tokens_computed) == (1, 2, 20)
    assert engine.num_required_blocks(9) == 3
    run_to_end(engine)
    assert engine.stats().num_generation_tokens == 6


def test_the_token_budget_can_be_set_while_it_runs_and_stays():
    engine = make_engine(max_num_batched_tokens=8)
    engine.add_request(EngineRequest("a", [1] * 100, SamplingParams(max_tokens=1)))
    assert engine.token_budget == 8
    assert engine.schedule().scheduled[0].num_new_tokens == 8
    engine.token_budget = 20
    for _ in range(3):
        output = engine.schedule()
        assert output.scheduled[0].num_new_tokens == 20
        engine.execute(output)
    assert engine.token_budget == 20
    with pytest.raises(ValueError, match="at least 1, not 0"):
        engine.token_budget = 0


def test_the_token_budget_limits_what_the_time_of_a_step_allows():
    engine = make_engine(max_num_batched_tokens=64, max_step_s=10.0)
    engine.add_request(EngineRequest("a", [1] * 500, SamplingParams(max_tokens=1)))
    engine.token_budget = 20
    for _ in range(3):
        output = engine.schedule()
        assert output.scheduled[0].num_new_tokens == 20
        engine.execute(output)


def test_steps_last_as_long_as_they_are_told():
    engine = make_engine(null=NullOptions(step_time_s=0.02))
    for index in range(8):
        engine.add_request(EngineRequest(str(index), [1], SamplingParams(max_tokens=10)))
    started_at = time.monotonic()
    run_to_end(engine)
    elapsed = time.monotonic() - started_at
    # The upper bound is loose: the machine may be busy.
    assert 0.2 <= elapsed < 1.0


def test_loading_is_reported_and_closing_reaches_the_executor():
    stages: list[tuple[str, float]] = []
    LLMEngine.from_config(make_config(), lambda stage, seconds: stages.append((stage, seconds)))
    assert [stage for stage, _ in stages] == ["null model"]
    engine = scripted_engine({})
    engine.close()
    assert executor_of(engine).is_closed


def test_the_null_model_is_what_the_configuration_says():
    options = NullOptions(vocab_size=1000, max_model_len=100, num_blocks=50)
    info = make_engine(null=options).info
    assert (info.vocab_size, info.max_model_len, info.num_blocks) == (1000, 100, 50)
    info = make_engine(null=options, max_model_len=64, num_blocks=9).info
    assert (info.max_model_len, info.num_blocks) == (64, 9)
    # A cap, not a promise: the model's own context stays.
    assert make_engine(null=options, max_model_len=200).info.max_model_len == 100


def test_asleep_it_takes_requests_and_steps_only_when_awake_again():
    engine, records = make_engine(), defaultdict(Record)
    engine.add_request(EngineRequest("a", (1, 2, 3), SamplingParams(max_tokens=6, seed=1)))
    step_into(records, engine)
    engine.sleep()
    engine.sleep()
    assert engine.is_asleep
    assert engine.num_free_blocks == engine.info.num_blocks
    with pytest.raises(EngineAsleepError, match="call wake"):
        engine.step()
    engine.add_request(EngineRequest("b", (1, 2, 3), SamplingParams(max_tokens=1)))
    assert engine.abort("b")
    engine.wake()
    while engine.has_unfinished_requests:
        step_into(records, engine)
    assert records["a"].token_ids == [null_token(1, 0, position) for position in range(6)]


@pytest.mark.parametrize("recites", [True, False])
def test_the_null_engine_recites_what_a_prompt_asks_for(recites: bool):
    """What the last pair of tags holds, then the end; within a grammar as far as that allows it."""
    options = NullOptions(step_time_s=0, recites=recites)
    engine = LLMEngine.from_config(EngineConfig(model="null", backend="null", null=options))
    prompts = {"said": "<recite>no</recite><recite>Hé!</recite> x", "open": "<recite>[7", "usual": "Hi"}
    for request_id, prompt in prompts.items():
        token_ids = engine.tokenizer.encode(prompt)
        wanted = StructuredOutput(regex=r"\[[0-9]\]")
        grammar = engine.compile_grammar(wanted) if request_id == "open" else None
        engine.add_request(
            EngineRequest(request_id, token_ids, SamplingParams(seed=7, max_tokens=16), grammar=grammar)
        )
    texts = dict.fromkeys(prompts, "")
    while engine.has_unfinished_requests:
        for output in engine.step():
            texts[output.request_id] += "".join(output.texts)
    usual = "".join(chr(null_token(7, 0, position)) for position in range(16))
    assert (texts["said"], texts["usual"]) == ("Hé!" if recites else usual, usual)
    assert (texts["open"] == "[7]") is recites
