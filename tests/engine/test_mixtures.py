"""Whatever comes together, in whatever order, and whatever happens: each request gets what it gets alone.

Every parameter, several choices, grammars, logprobs, guesses; arrivals, cancels, preemptions, takeovers,
sleeps.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagefleet.engine import (
    EngineConfig,
    EngineRequest,
    FinishReason,
    LLMEngine,
    SamplingParams,
    StructuredOutput,
)
from pagefleet.engine.execution.executor import LoadedModel

MAX_TOKENS = 14
SHARED = [*b"The same begin"]
GRAMMARS = (
    None,
    None,
    None,
    StructuredOutput(regex="[a-c]{2,9}"),
    StructuredOutput(choice=["yes", "no", "perhaps"]),
    StructuredOutput(
        json_schema={"type": "array", "items": {"enum": [1, "a"]}, "maxItems": 3}, wind_down=True
    ),
)

token_ids = st.integers(0, 258)
params = st.builds(
    SamplingParams,
    n=st.sampled_from([1, 1, 1, 2, 3]),
    max_tokens=st.integers(1, MAX_TOKENS),
    temperature=st.sampled_from([0.0, 0.8, 2.0]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.05]),
    typical_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, -0.5]),
    logit_bias=st.dictionaries(token_ids, st.floats(-5, 5), max_size=3),
    bad_words=st.sampled_from([(), ("A",), ("ab", "Z")]),
    stop=st.sampled_from([(), ("a",), ("b", "ee")]),
    stop_token_ids=st.sampled_from([(), (97, 98)]),
    ignore_eos=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    logprobs=st.sampled_from([None, None, 0, 2]),
    prompt_logprobs=st.sampled_from([None, None, 1]),
    # Few tokens repeat themselves soon: guesses come true.
    allowed_token_ids=st.sampled_from([None, None, [65, 97, 98]]),
    speculate=st.sampled_from([True, True, False]),
)


@dataclass
class Choice:
    """What the engine said of one choice, over all attempts."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[tuple[int, float]] = field(default_factory=list)
    end: tuple[FinishReason, Any] | None = None


@dataclass
class Story:
    """One request, from its arrival to its end."""

    request: EngineRequest
    choices: dict[int, Choice] = field(default_factory=lambda: defaultdict(Choice))
    prompt_logprobs: list[tuple[int, float]] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        return all(self.choices[index].end for index in range(self.request.sampling_params.n))

    def take(self, output) -> None:
        choice = self.choices[output.choice]
        assert choice.end is None, "a token after the end"
        assert output.offset == len(choice.token_ids), "a token is missing, or came twice"
        choice.token_ids += output.token_ids
        choice.text += output.text
        choice.logprobs += [(each.token_id, round(each.logprob, 7)) for each in output.logprobs]
        self.prompt_logprobs += [(each.token_id, round(each.logprob, 7)) for each in output.prompt_logprobs]
        if output.finish_reason is not None:
            choice.end = (output.finish_reason, output.stop_reason)

    def resumed(self, *, knows_ends: bool) -> EngineRequest:
        """For the next engine: an end is known to it, or found again in the log."""
        choices = [self.choices[index] for index in range(self.request.sampling_params.n)]
        logs = [None if each.end and knows_ends else tuple(each.token_ids) for each in choices]
        if not knows_ends:
            for each in choices:
                each.end = None
        return replace(self.request, logs=logs)


class MixtureMachine(RuleBasedStateMachine):
    """One engine at a time, too small for everything that comes."""

    loaded: ClassVar[LoadedModel]

    def __init__(self) -> None:
        super().__init__()
        self.stories: dict[str, Story] = {}
        self.cancelled: set[str] = set()

    @initialize(overlaps=st.booleans())
    def start(self, overlaps: bool) -> None:
        self.overlaps = overlaps
        self.engine = make_engine(self.loaded, num_blocks=24, overlap_steps=overlaps)

    @rule(
        params=params,
        num_shared=st.sampled_from([0, 5, 14]),
        tail=st.lists(token_ids, min_size=1, max_size=9),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "", "x"]),
        grammar=st.sampled_from(GRAMMARS),
    )
    def arrive(self, params, num_shared, tail, priority, salt, grammar) -> None:
        request = EngineRequest(
            str(len(self.stories)),
            [*SHARED[:num_shared], *tail],
            params,
            priority=priority,
            cache_salt=salt,
            grammar=self.engine.compile_grammar(grammar) if grammar is not None else None,
        )
        self.stories[request.request_id] = Story(request)
        self.engine.add_request(request)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            for output in self.engine.step():
                self.stories[output.request_id].take(output)

    @rule(budget=st.integers(1, 40))
    def set_budget(self, budget: int) -> None:
        self.engine.token_budget = budget

    @precondition(lambda self: self.open())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.open()))
        assert self.engine.abort(name)
        self.cancelled.add(name)

    @rule(knows_ends=st.booleans())
    def take_over(self, knows_ends: bool) -> None:
        """The engine dies; another one gets the requests and their logs."""
        # Both use one model: the step in flight ends first.
        self.engine._pipeline.forget()
        self.engine = make_engine(self.loaded, num_blocks=24, overlap_steps=self.overlaps)
        for name in self.open():
            self.engine.add_request(self.stories[name].resumed(knows_ends=knows_ends))

    @rule()
    def sleep(self) -> None:
        self.engine.sleep()
        self.engine.wake()

    @invariant()
    def books_balance(self) -> None:
        self.engine.check_integrity()

    def open(self) -> list[str]:
        return [
            name for name, story in self.stories.items() if name not in self.cancelled and not story.has_ended
        ]

    def teardown(self) -> None:
        self.engine.token_budget = 40
        while self.engine.has_unfinished_requests:
            self.step(1)
        assert self.open() == []
        assert self.engine.num_free_blocks == 24
        for name, story in self.stories.items():
            whole = alone(self.loaded, story.request)
            if name in self.cancelled:
                for index, choice in story.choices.items():
                    wanted = whole.choices[index].token_ids
                    assert choice.token_ids == wanted[: len(choice.token_ids)]
            else:
                assert story.choices == whole.choices
                assert story.prompt_logprobs == whole.prompt_logprobs


def make_engine(loaded: LoadedModel, num_blocks: int, **options: Any) -> LLMEngine:
    info = replace(loaded.info, num_blocks=num_blocks)
    config = EngineConfig(model="tiny", max_num_batched_tokens=40, max_num_seqs=5, **options)
    return LLMEngine(replace(loaded, info=info), config)


def alone(loaded: LoadedModel, request: EngineRequest) -> Story:
    """The same request in an engine of its own, with room for all of it and nothing guessed ahead."""
    engine, story = make_engine(loaded, num_blocks=64, num_speculative_tokens=0), Story(request)
    engine.add_request(request)
    while engine.has_unfinished_requests:
        for output in engine.step():
            story.take(output)
    return story


def test_each_request_gets_what_it_gets_alone(tiny_bytes):
    machine = type("Machine", (MixtureMachine,), {"loaded": tiny_bytes})
    case = machine.TestCase()
    case.settings = settings(
        max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    case.runTest()
