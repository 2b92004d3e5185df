"""Guessing ahead changes no token, no text and no end, whatever the parameters and the company."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagefleet.engine import (
    EngineConfig,
    EngineRequest,
    FinishReason,
    LLMEngine,
    SamplingParams,
    StructuredOutput,
)
from pagefleet.engine.core.ngram_proposer import Draft, NgramProposer
from pagefleet.engine.execution.executor import LoadedModel
from pagefleet.engine.outputs import TokenLogprobs
from pagefleet.engine.text.tokenizer import ByteTokenizer

EOS = ByteTokenizer.EOS_TOKEN_ID
PROMPT = [1, 5, 9, 40, 41, 42, 43, 44, 40, 41, 42]
NUM_TOKENS = 24
LETTERS = [ord("A"), ord("B"), ord("C")]


@dataclass
class Answer:
    """Everything that is told of one choice."""

    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Answer)
        return self._told() == other._told() and all(
            mine.logprob == pytest.approx(theirs.logprob, abs=1e-9)
            and [token_id for token_id, _ in mine.top] == [token_id for token_id, _ in theirs.top]
            for mine, theirs in zip(self.logprobs, other.logprobs, strict=True)
        )

    def _told(self) -> tuple[Any, ...]:
        ranks = [(each.token_id, each.rank) for each in self.logprobs]
        return self.token_ids, self.texts, self.finish_reason, self.stop_reason, ranks


Answers = dict[tuple[str, int], Answer]


class Seer(NgramProposer):
    """Knows what comes, and is wrong now and then: drafts that come true at any length and break anywhere."""

    def __init__(self, num_prompt_tokens: int, future: Sequence[int], seed: int) -> None:
        super().__init__(num_prompt_tokens)
        self._prompt_length = num_prompt_tokens
        self._future = future
        self._random = random.Random(seed)

    def propose(self, token_ids: Sequence[int], most: int) -> Draft:
        position = len(token_ids) - self._prompt_length
        length = self._random.randint(0, most)
        tokens = [*self._future[position : position + length]]
        tokens += [self._random.choice(PROMPT) for _ in range(length - len(tokens))]
        if tokens and self._random.random() < 0.6:
            place = self._random.randrange(len(tokens))
            tokens[place] = self._random.choice([other for other in LETTERS if other != tokens[place]])
        return Draft(tokens, [1.0] * len(tokens))


def make_engine(
    tiny: LoadedModel, num_speculative_tokens: int = 6, num_blocks: int = 64, **options: Any
) -> LLMEngine:
    info = replace(tiny.info, num_blocks=num_blocks)
    options = {"num_speculative_tokens": num_speculative_tokens} | options
    config = EngineConfig(model="tiny", max_num_batched_tokens=40, **options)
    return LLMEngine(replace(tiny, info=info), config)


def run(
    engine: LLMEngine,
    requests: Sequence[EngineRequest],
    arrivals: Sequence[int] = (),
    foreseen: Answers | None = None,
) -> Answers:
    """Every answer to its end; request i comes at step `arrivals[i]`, or at once."""
    answers: Answers = defaultdict(Answer)
    later = [(arrivals[i] if i < len(arrivals) else 0, request) for i, request in enumerate(requests)]
    for number in range(10_000):
        for request in [request for arrival, request in later if arrival == number]:
            engine.add_request(request)
            if foreseen is not None:
                _open_eyes(engine, request, foreseen)
        for output in engine.step():
            _note(answers[output.request_id, output.choice], output)
        engine.check_integrity()
        if not engine.has_unfinished_requests and number >= max(arrival for arrival, _ in later):
            break
    assert engine.num_free_blocks == engine.info.num_blocks
    return dict(answers)


def _note(answer: Answer, output: Any) -> None:
    assert answer.finish_reason is None
    assert len(output.texts) == len(output.token_ids)
    answer.token_ids += output.token_ids
    answer.texts += output.texts
    answer.logprobs += output.logprobs
    answer.finish_reason, answer.stop_reason = output.finish_reason, output.stop_reason


def _open_eyes(engine: LLMEngine, request: EngineRequest, foreseen: Answers) -> None:
    for sequence in engine._sequences.get(request.request_id, ()):
        future = foreseen[request.request_id, sequence.choice].token_ids
        if sequence.proposer is not None:
            seed = sequence.seed + sequence.choice
            sequence.proposer = Seer(sequence.num_prompt_tokens, future, seed)


few_letters = st.just(LETTERS) | st.just([*LETTERS, EOS])
params = st.builds(
    SamplingParams,
    n=st.sampled_from([1, 1, 2]),
    max_tokens=st.sampled_from([1, 2, 9, NUM_TOKENS]),
    min_tokens=st.sampled_from([0, 1]),
    temperature=st.sampled_from([0.0, 0.5, 1.5]),
    top_k=st.sampled_from([0, 2]),
    top_p=st.sampled_from([1.0, 0.9]),
    typical_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -0.5]),
    logit_bias=st.just({}) | st.just({EOS: 2.0}),
    allowed_token_ids=st.none() | few_letters,
    bad_words=st.sampled_from([(), ("A",), ("AB", "CC")]),
    stop=st.sampled_from([(), ("BA",), ("CAB", "AAA")]),
    stop_token_ids=st.sampled_from([(), (ord("C"),)]),
    ignore_eos=st.booleans(),
    logprobs=st.sampled_from([None, None, 0, 2]),
    seed=st.integers(0, 2**64 - 1),
    speculate=st.sampled_from([True, True, True, False]),
)
long_params = st.builds(
    lambda one, least: replace(one, max_tokens=NUM_TOKENS, min_tokens=least),
    params,
    st.sampled_from([0, 5, NUM_TOKENS]),
)
grammars = st.sampled_from(
    [
        None,
        None,
        StructuredOutput(regex="[ABC]{3,12}(0|1[23])?"),
        StructuredOutput(regex="((AB){1,3}C)+"),
        StructuredOutput(choice=["ABCABCABC", "ABCABD", "B"]),
        StructuredOutput(json_schema={"type": "array", "items": {"enum": [1, 12, 123]}}, wind_down=True),
    ]
)
requests = st.tuples(params | long_params, grammars, st.integers(1, len(PROMPT)), st.integers(0, NUM_TOKENS))


def made(engine: LLMEngine, mixture: Sequence[tuple[Any, ...]]) -> list[EngineRequest]:
    return [
        EngineRequest(
            str(index),
            [*PROMPT[:length], index + 10],
            one,
            grammar=engine.compile_grammar(wanted) if wanted is not None else None,
        )
        for index, (one, wanted, length, _) in enumerate(mixture)
    ]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(requests, min_size=1, max_size=5), st.lists(st.integers(0, 12), max_size=5), st.booleans())
def test_with_and_without_the_same_is_told(tiny_bytes, mixture, arrivals, is_tight):
    """Given requests with any parameters, grammars and stops that come at any time: each is told the same as
    alone without speculation; with the proposer itself, with drafts that come true more often, in a batch
    that has too few blocks for all, and continued from any prefix of its log."""
    plain = make_engine(tiny_bytes, num_speculative_tokens=0)
    wanted = made(plain, mixture)
    expected: Answers = {}
    for request in wanted:
        expected |= run(plain, [request])
    num_blocks = 16 if is_tight else 64
    assert run(make_engine(tiny_bytes, num_blocks=num_blocks), wanted, arrivals) == expected
    overlapped = make_engine(tiny_bytes, num_blocks=num_blocks, overlap_steps=True)
    assert run(overlapped, wanted, arrivals, expected) == expected

    cuts = {str(index): cut for index, (*_, cut) in enumerate(mixture)}
    resumed = [
        replace(
            request,
            logs=[
                expected[request.request_id, choice].token_ids[: cuts[request.request_id]]
                for choice in range(request.sampling_params.n)
            ],
        )
        for request in wanted
    ]
    rest = run(make_engine(tiny_bytes, num_blocks=num_blocks), resumed, arrivals, expected)
    for (name, choice), answer in rest.items():
        whole = expected[name, choice]
        assert whole.token_ids[: cuts[name]] + answer.token_ids == whole.token_ids
        assert whole.texts[: cuts[name]] + answer.texts == whole.texts
        assert (answer.finish_reason, answer.stop_reason) == (whole.finish_reason, whole.stop_reason)
