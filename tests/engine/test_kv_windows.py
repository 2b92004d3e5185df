"""KV groups in the engine: a long stream holds one window of blocks in the layers that have one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pagefleet.engine import SamplingParams
from pagefleet.engine.config import EngineConfig, NullOptions
from pagefleet.engine.engine_request import EngineRequest
from pagefleet.engine.llm_engine import LLMEngine

BLOCK_SIZE = 16
NUM_TOKENS = 30_000


def make_engine(*kv_windows: int | None, num_blocks: int, **fields: Any) -> LLMEngine:
    null = NullOptions(step_time_s=0, max_model_len=NUM_TOKENS, kv_windows=kv_windows)
    fields = {"num_speculative_tokens": 0, "max_num_batched_tokens": 512} | fields
    config = EngineConfig(model="null", backend="null", null=null, num_blocks=num_blocks, **fields)
    return LLMEngine.from_config(config)


def request(request_id: str, num_prompt_tokens: int, max_tokens: int) -> EngineRequest:
    prompt = [(7 * position) % 256 for position in range(num_prompt_tokens)]
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=1)
    return EngineRequest(request_id, prompt, params)


def used_blocks(engine: LLMEngine) -> list[int]:
    return [group.num_blocks - group.num_free_blocks for group in engine.stats().kv_groups]


def run(engine: LLMEngine) -> list[int]:
    """Run all requests; return the largest number of used blocks of each group while tokens are generated."""
    most = [0] * len(engine.info.kv_groups)
    while engine.has_unfinished_requests:
        outputs = engine.step()
        if outputs:
            most = [max(pair) for pair in zip(most, used_blocks(engine), strict=True)]
    engine.check_integrity()
    return most


def num_window_blocks(window: int) -> int:
    """The blocks of the tokens that the next one reads, and the one that it is written to."""
    return -(-(window - 1) // BLOCK_SIZE) + 1


def test_a_stream_of_30_000_tokens_holds_one_window_in_its_local_layers():
    # Given a model with full, local and very local layers
    engine = make_engine(None, 1024, 128, num_blocks=NUM_TOKENS // BLOCK_SIZE)
    windows = [group.window for group in engine.stats().kv_groups]
    assert windows == [None, 1024, 128]
    # When a stream of 30,000 tokens, most of them prompt, runs to its end
    engine.add_request(request("a", 24_000, 6_000))
    full, local, very_local = run(engine)
    # Then its full layers hold all tokens, and the others one window, all the time
    assert full == NUM_TOKENS // BLOCK_SIZE
    assert local <= num_window_blocks(1024)
    assert very_local <= num_window_blocks(128)
    assert used_blocks(engine) == [0, 0, 0]


@pytest.mark.parametrize("kv_windows", [(1024,), (1024, 128)])
def test_a_pool_of_a_window_and_a_chunk_takes_a_stream_of_30_000_tokens(kv_windows):
    # Given a model whose layers are all local, and a KV cache of 1,024 tokens and a chunk of 512
    num_blocks = num_window_blocks(1024) + 512 // BLOCK_SIZE
    engine = make_engine(*kv_windows, num_blocks=num_blocks)
    assert engine.num_required_blocks(NUM_TOKENS) == num_window_blocks(1024) + 1
    engine.add_request(request("a", 29_000, 1_000))
    # When its prompt is computed, Then chunks are full, but for the rounding of blocks
    num_steps = 0
    while engine.stats().num_generation_tokens == 0:
        engine.step()
        num_steps += 1
        assert engine.num_free_blocks >= 0
    assert num_steps <= 29_000 // (512 - BLOCK_SIZE) + 2
    assert run(engine)[0] <= num_window_blocks(1024)


def test_streams_that_the_windows_cannot_hold_together_take_turns_and_end():
    engine = make_engine(64, num_blocks=2 * num_window_blocks(64) + 3, max_num_seqs=8)
    for index in range(6):
        engine.add_request(request(str(index), 300 + index, 300))
    run(engine)
    assert engine.stats().num_generation_tokens == 6 * 300
    assert used_blocks(engine) == [0]


def test_a_conversation_goes_on_after_its_window_was_all_that_is_left():
    # Given a first turn of 2,000 tokens, in a pool that holds little more than a window
    engine = make_engine(256, num_blocks=num_window_blocks(256) + 8)
    engine.add_request(request("first", 2_000, 8))
    run(engine)
    # When the second turn begins with the same tokens
    engine.add_request(request("second", 2_100, 8))
    run(engine)
    # Then only its own tokens are computed: the block of the last prompt token, and what follows
    assert engine.stats().prefix_cache_hits == 2_000
    assert engine.stats().num_prompt_tokens_computed == 2_000 + 100


def test_a_pool_with_a_window_has_at_most_twice_what_all_sequences_can_use():
    engine = make_engine(None, 64, num_blocks=3000, max_num_seqs=2)
    # Two windows of 4 blocks with 3 more each, and a step of 512 tokens.
    assert [group.num_blocks for group in engine.info.kv_groups] == [3000, 2 * (2 * 7 + 32)]
    # Given fewer blocks, Then no group has more than the first.
    engine = make_engine(None, 64, num_blocks=30, max_num_seqs=2)
    assert [group.num_blocks for group in engine.info.kv_groups] == [30, 30]
    assert [group.num_blocks for group in replace(engine.info, num_blocks=8).kv_groups] == [8, 8]
