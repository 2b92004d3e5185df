"""Memory: the KV cache leaves a step its room, and an engine that sleeps gives back what it holds."""

from __future__ import annotations

import ctypes
import gc
from types import SimpleNamespace

import psutil
import pytest
import torch
from tiny_gguf import write_gguf

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, SamplingParams
from pagefleet.engine.backends.base import Backend
from pagefleet.engine.core.ngram_index import num_index_bytes
from pagefleet.engine.execution import warm_up
from pagefleet.engine.execution.kv_sizing import CPU_MEMORY_SHARE, DEVICE_MEMORY_SHARE, fitting_kv_groups
from pagefleet.engine.execution.warm_up import WarmUp, peak_memory
from pagefleet.engine.loading.checkpoint import resolve

MIB = 2**20
CPU = torch.device("cpu")


def tokens_of(engine: LLMEngine, num_steps: int) -> list[int]:
    return [token for _ in range(num_steps) for output in engine.step() for token in output.token_ids]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("memory") / "tiny.gguf"
    write_gguf(path)
    return str(resolve(str(path), path.parent / "cache").folder)


@pytest.mark.parametrize("num_steps", [0, 1, 5])
def test_after_a_sleep_a_sequence_goes_on_with_the_same_tokens(tiny_model, num_steps):
    config = EngineConfig(model=tiny_model, dtype="float64", num_blocks=8, max_num_batched_tokens=16)
    params = SamplingParams(max_tokens=16, seed=3, ignore_eos=True)
    prompt = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11] * 3
    answers = []
    for sleeps in (False, True):
        engine = LLMEngine.from_config(config)
        engine.add_request(EngineRequest("a", prompt, params))
        tokens = tokens_of(engine, num_steps)
        if sleeps:
            engine.sleep()
            engine.wake()
        answers.append(tokens + tokens_of(engine, 20))
        assert not engine.has_unfinished_requests
        engine.close()
    assert len(answers[0]) == 16
    assert answers[0] == answers[1]


def test_sleeping_gives_the_memory_of_the_weights_back(smollm2_folder):
    """135M parameters in bfloat16 are 257 MiB."""
    process = psutil.Process()
    engine = LLMEngine.from_config(
        EngineConfig(model=str(smollm2_folder), num_blocks=64, max_num_batched_tokens=16)
    )
    awake = process.memory_info().rss
    engine.sleep()
    gc.collect()
    assert awake - process.memory_info().rss > 200 * MIB
    engine.wake()
    engine.add_request(EngineRequest("b", range(10), SamplingParams(max_tokens=1)))
    assert len(tokens_of(engine, 1)) == 1
    engine.close()


def test_a_peak_is_what_was_there_at_once_for_a_moment():
    def compute():
        torch.ones(64 * MIB // 4)
        return torch.ones(4 * MIB // 4).sum()

    # What earlier tests have freed and the allocator has kept would be used again, and not count.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)
    trim(0)
    peak_memory(CPU, compute)
    trim(0)
    assert 60 * MIB < peak_memory(CPU, compute) < 100 * MIB
    assert peak_memory(CPU, lambda: None) < 4 * MIB


def test_the_kv_cache_leaves_the_largest_step_its_room(tiny_model, monkeypatch):
    """The larger a step's peak, the fewer blocks; each is a share of what the step leaves."""
    monkeypatch.setattr(warm_up, "_free_memory", lambda device: 100 * MIB)
    monkeypatch.setattr(warm_up, "peak_memory", lambda device, compute: compute() or 60 * MIB)
    per_block = 4096
    monkeypatch.setattr(Backend, "kv_bytes_per_block", lambda *arguments: [per_block])
    engine = LLMEngine.from_config(
        EngineConfig(model=tiny_model, max_num_seqs=10_000, num_speculative_tokens=0)
    )
    assert engine.info.num_blocks == int(40 * MIB * CPU_MEMORY_SHARE) // per_block
    engine.close()


def test_the_kv_cache_leaves_room_for_the_n_grams_of_all_sequences():
    """On a CPU, where both are in the same memory, and with speculative tokens."""

    def num_bytes(device: str = "cpu", **fields) -> int:
        runner = SimpleNamespace(
            device=torch.device(device),
            spec=SimpleNamespace(kv_windows=(None,)),
            kv_bytes_per_block=lambda block_size: [8192],
        )
        config = EngineConfig(model="any", max_num_seqs=64, **fields)
        (group,) = fitting_kv_groups(runner, config, 32_768, WarmUp(400 * MIB, 512, 0.001))
        return group.num_blocks * 8192

    needed = 64 * num_index_bytes(32_768)
    assert needed == 32 * MIB
    without = int(400 * MIB * CPU_MEMORY_SHARE)
    assert num_bytes(num_speculative_tokens=0) == without
    assert num_bytes() == without - needed
    assert num_bytes("cuda") == int(400 * MIB * DEVICE_MEMORY_SHARE) // 8192 * 8192
    assert num_bytes(kv_memory_bytes=50 * MIB) == 50 * MIB
