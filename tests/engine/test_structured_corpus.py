"""Real-world schemas: what the real model writes under them parses and validates.

``make structured`` sets ``PAGEFLEET_STRUCTURED_SCHEMAS=all``: the model writes under all of them, not a few.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from structured_corpus import NamedSchema, fault, random_walk, run, schemas

from pagefleet.engine import EngineConfig, LLMEngine, StructuredOutput
from pagefleet.engine.execution.executor import LoadedModel

ALL = os.environ.get("PAGEFLEET_STRUCTURED_SCHEMAS") == "all"
FEW = {"gpc", "numbers-only", "enum-unicode", "one-of-tagged", "patterns", "lengths", "tree", "mail"}


@pytest.fixture(scope="module")
def engine(smollm2_float32: LoadedModel, engine_with: Callable[..., LLMEngine]) -> Iterator[LLMEngine]:
    if not ALL:
        yield engine_with(smollm2_float32)
        return
    # The long run is one batch, in the checkpoint's own dtype.
    config = EngineConfig(model="smollm2-135m-instruct", num_blocks=8000, max_num_seqs=128, max_step_s=60.0)
    engine = LLMEngine.from_config(config)
    yield engine
    engine.close()


def all_schemas() -> list[NamedSchema]:
    return schemas("real_world") + schemas("hand_made")


def test_there_are_a_hundred_real_ones():
    assert len(schemas("real_world")) >= 100
    assert len({case.name for case in all_schemas()}) == len(all_schemas()) >= 120


@pytest.mark.slow
def test_any_text_under_any_schema_can_be_ended_and_is_valid(engine: LLMEngine):
    """No model: random tokens that the grammar allows, then the shortest way out."""
    faults = {}
    for name, schema in all_schemas():
        grammar = engine.compile_grammar(StructuredOutput(json_schema=schema, wind_down=True))
        # One in a pattern that asks for something long behind an endless part has no short way out.
        walks = (random_walk(grammar.copy(), max_tokens=600, num_free=20, seed=seed) for seed in range(3))
        token_ids = next((walk for walk in walks if walk is not None), None)
        text = engine.tokenizer.decode(token_ids or [])
        faults[name] = "no end" if token_ids is None else fault(text, schema)
    assert {name: wrong for name, wrong in faults.items() if wrong} == {}


def test_the_way_out_is_short_whatever_the_model_likes(engine: LLMEngine):
    """Text that is forced comes in the tokenizer's own tokens, and no object is begun with a property at once
    that nobody asks for: cut into other tokens this document's end is up to 40 % longer, and is cut off."""
    (case,) = (case for case in schemas("real_world") if case.name == "azure-iot-edge-deployment-2.0")
    grammar = engine.compile_grammar(StructuredOutput(json_schema=case.schema, wind_down=True))
    walks = [random_walk(grammar.copy(), max_tokens=1000, num_free=0, seed=seed) for seed in range(20)]
    lengths = [len(walk or ()) for walk in walks]
    assert 0 < max(lengths) < 1.15 * min(lengths)


@pytest.mark.parametrize("temperature", [0.0, pytest.param(1.5, marks=pytest.mark.slow)])
def test_what_the_model_writes_is_whole_and_valid(engine: LLMEngine, temperature: float):
    cases = [case for case in all_schemas() if ALL or case.name in FEW]
    assert ALL or len(cases) == len(FEW)
    sampling = {} if ALL else {"max_tokens": 128}
    outcome = run(engine, cases, temperature=temperature, seed=11, **sampling)
    print(f"temperature {temperature}, {len(cases)} schemas: {outcome}")  # noqa: T201
    assert outcome.faults == []
