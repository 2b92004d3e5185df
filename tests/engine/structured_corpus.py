"""The schemas of tests/data/schemas, and what is written under them: does it parse and validate?"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ecma_validator import validator_for

from pagefleet.engine import EngineRequest, Grammar, LLMEngine, SamplingParams, StructuredOutput

FOLDER = Path(__file__).parents[1] / "data" / "schemas"
PROMPT = "Write an example of a JSON document for a file of the kind {name!r}."
MAX_TOKENS = 256


class NamedSchema(NamedTuple):
    name: str
    schema: Any


class Answer(NamedTuple):
    name: str
    text: str
    finish_reason: str
    stop_reason: str | int | None
    num_tokens: int


class Outcome(NamedTuple):
    faults: list[str]
    num_wound_down: int
    num_tokens: int
    seconds: float


@cache
def schemas(file: str) -> list[NamedSchema]:
    lines = (FOLDER / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
    return [NamedSchema(entry["name"], entry["schema"]) for entry in map(json.loads, lines)]


def random_walk(grammar: Grammar, max_tokens: int, num_free: int, seed: int = 0) -> list[int] | None:
    """Tokens of a text that is wound down after `num_free` random ones; None where it has no end in time."""
    rng = random.Random(seed)
    grammar.limit(4 * num_free // 3)
    token_ids: list[int] = []
    while len(token_ids) < max_tokens and not grammar.is_finished:
        token_ids.append(int(rng.choice(grammar.allowed_token_ids(len(token_ids)))))
        assert grammar.accept(token_ids[-1]) is None, grammar.error
    return token_ids if grammar.is_finished and grammar.error is None else None


def run(
    engine: LLMEngine, cases: Sequence[NamedSchema], *, wind_down: bool = True, **sampling: Any
) -> Outcome:
    """All of them in one batch."""
    by_name = dict(cases)
    begun_at, faults, num_wound_down, num_tokens = time.monotonic(), [], 0, 0
    for answer in _answers(engine, cases, wind_down, sampling):
        num_tokens += answer.num_tokens
        num_wound_down += answer.stop_reason == "wind_down"
        wrong = fault(answer.text, by_name[answer.name])
        if answer.finish_reason != "stop":
            wrong = f"{answer.finish_reason} after {answer.num_tokens} tokens: ...{answer.text[-60:]!r}"
        faults += [f"{answer.name}: {wrong}"] if wrong else []
    return Outcome(faults, num_wound_down, num_tokens, time.monotonic() - begun_at)


def fault(text: str, schema: Any) -> str | None:
    """What is wrong with a text; None where it is JSON and valid, formats included."""
    try:
        document = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error}"
    found = next(validator_for(schema).iter_errors(document), None)
    return None if found is None else f"not valid: {found.message[:200]}"


def _answers(
    engine: LLMEngine, cases: Sequence[NamedSchema], wind_down: bool, sampling: dict[str, Any]
) -> Iterator[Answer]:
    for name, schema in cases:
        chat = [{"role": "user", "content": PROMPT.format(name=name)}]
        grammar = engine.compile_grammar(StructuredOutput(json_schema=schema, wind_down=wind_down))
        params = SamplingParams(**({"max_tokens": _enough(engine, schema)} | sampling))
        prompt = engine.tokenizer.apply_chat_template(chat)
        engine.add_request(EngineRequest(name, prompt, params, grammar=grammar))
    texts = dict.fromkeys((case.name for case in cases), "")
    while engine.has_unfinished_requests:
        for output in engine.step():
            name = output.request_id
            texts[name] += output.text
            if output.finish_reason is not None:
                num_tokens = output.offset + len(output.token_ids)
                yield Answer(name, texts[name], output.finish_reason.value, output.stop_reason, num_tokens)


def _enough(engine: LLMEngine, schema: Any) -> int:
    """`max_tokens` whose last quarter holds the shortest document, or nearly."""
    grammar = engine.compile_grammar(StructuredOutput(json_schema=schema, wind_down=True))
    shortest = random_walk(grammar, max_tokens=1000, num_free=0)
    assert shortest is not None
    return max(MAX_TOKENS, 4 * len(shortest) + 64)
