"""KV groups with a real model: in pools that hold little more than one window, tokens equal transformers'.

A block that its window has passed is used again at once: a query that still read it would see another text.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from family_harness import NUM_TOKENS, Case, Family, Text, Variant, greedy, requests_of, run

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine
from pagefleet.engine.execution.executor import LoadedModel
from pagefleet.engine.loading.loader import load
from pagefleet.engine.model_info import KVGroup

BLOCK_SIZE = 4
WINDOW = 16
NUM_LAYERS = 2
BYTES_PER_TOKEN = 2 * 2 * 8 * 4
"""Of a layer: keys and values of 2 heads with 8 elements in float32."""
WINDOW_BLOCKS = (WINDOW - 2) // BLOCK_SIZE + 3
"""What one sequence needs at once."""
LONGEST_BLOCKS = -(-(150 + NUM_TOKENS) // BLOCK_SIZE)


class WindowChecks(Family):
    """The checks; the classes below have a model each."""

    windows: tuple[int | None, ...]
    """Of the model's KV groups."""
    num_slots_of_1000: list[int]
    """Tokens that each group's pool holds in the memory of 1,000 tokens of all layers."""

    @pytest.mark.parametrize(("num_more", "budget"), [(0, 7), (0, 512), (5, 7)])
    def test_small_pools(self, case: Case, num_more: int, budget: int) -> None:
        engine = make_engine(case, num_more, max_num_batched_tokens=budget)
        assert [group.window for group in engine.stats().kv_groups] == list(self.windows)
        answers = run(engine, requests_of(case.texts, greedy()))
        assert [answer.token_ids for answer in answers.values()] == [text.tokens for text in case.texts]
        assert all(group.num_free_blocks == group.num_blocks for group in engine.stats().kv_groups)

    def test_a_second_turn_finds_the_window_of_the_first(self, case: Case) -> None:
        engine, half = make_engine(case, num_more=3), NUM_TOKENS // 2
        (text, *_) = case.texts
        run(engine, [EngineRequest("first", text.prompt, greedy(max_tokens=half))])
        turn = [*text.prompt, *text.tokens[:half]]
        answers = run(engine, [EngineRequest("second", turn, greedy(max_tokens=NUM_TOKENS - half))])
        assert answers["second"].token_ids == text.tokens[half:]
        # All full blocks but the last, although all but the window's were used again.
        assert answers["second"].num_cached_tokens >= len(turn) - 2 * BLOCK_SIZE

    def test_the_kv_cache_fits_its_memory(self, case: Case) -> None:
        """Given memory for about 1,000 tokens of all layers, in which one sequence at a time runs."""
        engine = LLMEngine.from_config(
            EngineConfig(
                model=str(case.folder),
                dtype="float32",
                block_size=BLOCK_SIZE,
                kv_memory_bytes=1000 * BYTES_PER_TOKEN * NUM_LAYERS,
                max_num_seqs=1,
                max_num_batched_tokens=16,
            )
        )
        num_slots = [group.num_blocks * BLOCK_SIZE for group in engine.info.kv_groups]
        assert num_slots == self.num_slots_of_1000
        # The backend has as many: a text that uses the whole pool is right.
        answers = run(engine, requests_of(case.texts, greedy()))
        assert [answer.token_ids for answer in answers.values()] == [text.tokens for text in case.texts]
        engine.sleep()
        engine.wake()
        answers = run(engine, requests_of(case.texts, greedy()))
        assert [answer.token_ids for answer in answers.values()] == [text.tokens for text in case.texts]

    @pytest.mark.parametrize("seed", range(2))
    def test_a_mixture(self, case: Case, seed: int) -> None:
        """Given takeovers, priorities, drafts and aborts in any order, each text is what it is alone."""
        play(case, random.Random(seed))

    @pytest.mark.slow
    def test_many_mixtures(self, case: Case) -> None:
        for seed in range(2, 14):
            play(case, random.Random(seed))


class TestMistral(WindowChecks):
    prefix = "Mistral"
    options = {"sliding_window": WINDOW}
    windows = (WINDOW,)
    num_slots_of_1000 = [1000]
    variants = {"local": Variant(prompt_lengths=(150, 1, 90))}


class TestQwen2(WindowChecks):
    prefix = "Qwen2"
    options = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    windows = (None, WINDOW)
    # Twice a window of 7 blocks and a step of 4: the other layer gets the rest of the memory.
    num_slots_of_1000 = [2000 - 2 * 11 * BLOCK_SIZE, 2 * 11 * BLOCK_SIZE]
    variants = {"full and local": Variant(prompt_lengths=(150, 1, 90))}


@cache
def load_model(folder: Path) -> LoadedModel:
    return load(EngineConfig(model=str(folder), dtype="float32", block_size=BLOCK_SIZE, num_blocks=256))


def make_engine(case: Case, num_more: int, **options: Any) -> LLMEngine:
    """Return an engine whose pools have `num_more` blocks more than the longest text needs."""
    loaded = load_model(case.folder)
    groups = tuple(
        KVGroup(group.window, (LONGEST_BLOCKS if group.window is None else WINDOW_BLOCKS) + num_more)
        for group in loaded.info.kv_groups
    )
    info = replace(loaded.info, num_blocks=groups[0].num_blocks, kv_groups=groups)
    fields = {"num_speculative_tokens": 0, "max_num_batched_tokens": 64} | options
    return LLMEngine(replace(loaded, info=info), EngineConfig(model=str(case.folder), **fields))


def play(case: Case, draw: random.Random) -> None:
    """Run requests that continue the case's texts somewhere, and come and go while others run."""
    engine = make_engine(
        case,
        draw.choice([0, 1, 2, 4, 8, 16]),
        max_num_batched_tokens=draw.choice([5, 16, 64]),
        num_speculative_tokens=draw.choice([0, 0, 4]),
        enable_prefix_caching=draw.random() < 0.7,
    )
    expected: dict[str, list[int]] = {}
    found: dict[str, list[int]] = {}
    for index in range(10):
        text, cut = draw.choice(case.texts), draw.randrange(NUM_TOKENS)
        expected[str(index)], found[str(index)] = text.tokens[cut:], []
        engine.add_request(continuation(str(index), text, cut, priority=draw.randrange(2)))
        if draw.random() < 0.2:
            aborted = draw.choice(list(found))
            engine.abort(aborted)
            del found[aborted], expected[aborted]
        for _ in range(draw.randrange(12)):
            take_step(engine, found)
    while engine.has_unfinished_requests:
        take_step(engine, found)
    assert found == expected


def continuation(request_id: str, text: Text, cut: int, priority: int) -> EngineRequest:
    return EngineRequest(request_id, text.prompt, greedy(), logs=[text.tokens[:cut]], priority=priority)


def take_step(engine: LLMEngine, found: dict[str, list[int]]) -> None:
    for output in engine.step():
        found[output.request_id] += output.token_ids
    engine.check_integrity()
