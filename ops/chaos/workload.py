"""The load: sets of requests that are equal in every run, and the expected outcome of each."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ops.chaos.shapes import SHAPES, is_whole
from pagefleet.engine.execution.null_executor import null_token

_STRUCTURED: Final = (1, 5, 6)
"""Of every eight requests, those with these indices have structured output, of each kind in turn."""

_SEVERAL: Final = 3
"""Of every eight requests, the one with this index has this many choices."""


class Outcome(NamedTuple):
    """The final state of a job as a client sees it: its first choice, and the others if there are any."""

    token_ids: list[int]
    text: str
    finish_reason: str | None
    others: tuple[Outcome, ...] = ()


def choices_of(outcome: Outcome) -> tuple[Outcome, ...]:
    return (outcome, *outcome.others)


@dataclass(frozen=True, slots=True)
class Workload:
    """The size of a round: ``num_streams`` concurrent requests, drawn uniformly from the ranges."""

    num_streams: int
    prompt_len: tuple[int, int]
    output_len: tuple[int, int]
    vocab: tuple[int, int]
    num_sets: int
    stop: Callable[[random.Random, int], str]
    """A stop string for a request of this seed."""

    def requests(self, set_index: int) -> list[dict[str, Any]]:
        """Keyword arguments of ``FleetClient.generate``. Both lanes, all priorities, every second one
        sampled, every fourth with a stop string, three of eight structured, one with choices."""
        rng = random.Random(f"chaos/{set_index}")
        return [self._request(rng, index) for index in range(self.num_streams)]

    def _request(self, rng: random.Random, index: int) -> dict[str, Any]:
        seed = rng.randrange(2**32)
        stop = self.stop(rng, seed)
        request: dict[str, Any] = {
            "prompt_token_ids": [rng.randrange(*self.vocab) for _ in range(rng.randint(*self.prompt_len))],
            "max_tokens": rng.randint(*self.output_len),
            "seed": seed,
            "temperature": rng.choice([0.7, 1.0, 1.3]) if index % 2 else 0.0,
            "lane": rng.choice(["interactive", "interactive", "batch"]),
            "priority": rng.randrange(10),
        }
        if index % 8 in _STRUCTURED:
            shape = SHAPES[(index // 8 * len(_STRUCTURED) + _STRUCTURED.index(index % 8)) % len(SHAPES)]
            return request | {"structured_outputs": shape.wanted}
        if index % 8 == _SEVERAL:
            request["n"] = _SEVERAL
        return request | {"stop": stop} if index % 4 == 3 else request


def _null_stop(rng: random.Random, seed: int) -> str:
    """Return three characters that this seed produces: held back, then matched across several steps."""
    first = rng.randint(10, 60)
    return "".join(chr(null_token(seed, 0, position)) for position in range(first, first + 3))


def _model_stop(rng: random.Random, _seed: int) -> str:
    return rng.choice(["e", " a", "the", "\n", ". "])


def workload_of(engine: str, num_streams: int | None) -> Workload:
    """The load of an engine: ``null`` or ``model``."""
    if engine == "null":
        return Workload(num_streams or 64, (32, 256), (40, 200), (32, 127), 8, _null_stop)
    return Workload(num_streams or 16, (32, 96), (8, 32), (1000, 40000), 1, _model_stop)


def null_tokens_are_right(requests: Sequence[dict[str, Any]], outcomes: Sequence[Outcome]) -> bool:
    """Check the calm run itself: the null engine's tokens are a pure function of seed and position."""

    def is_right(request: dict[str, Any], outcome: Outcome, choice: int) -> bool:
        num_tokens = len(outcome.token_ids)
        ended_at_length = outcome.finish_reason == "length" and num_tokens == request["max_tokens"]
        if "structured_outputs" in request:
            # A text that was cut off proves nothing.
            has_ended = outcome.finish_reason == "stop"
            return ended_at_length or (has_ended and is_whole(request["structured_outputs"], outcome.text))
        expected = [null_token(request["seed"], choice, position) for position in range(num_tokens)]
        ended_at_stop = outcome.finish_reason == "stop" and "stop" in request
        return outcome.token_ids == expected and (ended_at_length or ended_at_stop)

    return all(
        len(choices_of(outcome)) == request.get("n", 1)
        and all(is_right(request, each, choice) for choice, each in enumerate(choices_of(outcome)))
        for request, outcome in zip(requests, outcomes, strict=True)
    )
