"""BatchTable: another process reads it through shared memory, and computes the same steps from it."""

from __future__ import annotations

import multiprocessing
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from pagefleet.engine.core.batch_table import BatchTable
from pagefleet.engine.core.block_manager import BlockManager
from pagefleet.engine.core.scheduler import Scheduler
from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.execution.executor import LoadedModel
from pagefleet.engine.execution.step_input import StepInputs
from pagefleet.engine.model_info import KVGroup
from pagefleet.engine.outputs import FinishReason
from pagefleet.engine.sampling.sampling_params import SamplingParams

BLOCK_SIZE = 4


def compute_steps(pipe: Connection, folder: Path) -> None:
    """The other process: it has its own weights and KV cache, and gets numbers only."""
    import json

    import torch

    from pagefleet.engine.execution.model_runner import ModelRunner
    from pagefleet.engine.models.model_source import ModelSource

    config = json.loads((folder / "config.json").read_text())
    runner = ModelRunner(ModelSource(folder, config, torch.device("cpu"), torch.float64))
    runner.allocate_kv_cache([64], BLOCK_SIZE)
    pipe.send("ready")
    while (step := pipe.recv()) is not None:
        pipe.send(runner.execute(step).token_ids.tolist())


@pytest.fixture
def other_process(tiny_checkpoints):
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=compute_steps, args=(theirs, tiny_checkpoints["llama"]), daemon=True)
    process.start()
    assert pipe.poll(120)
    assert pipe.recv() == "ready"
    yield pipe
    pipe.send(None)
    process.join(60)
    assert process.exitcode == 0


def sequence(index: int) -> Sequence:
    params = SamplingParams(max_tokens=14 + index, temperature=index % 3 / 2, top_k=index % 2 * 20)
    prompt = [1, 5 + index, *range(9, 20 + 3 * index)]
    return Sequence(str(index), np.array(prompt), len(prompt), params, seed=index)


def test_a_second_process_computes_the_steps_tokens(tiny: LoadedModel, other_process: Connection):
    """Given sequences that come, go, and lose their blocks to others."""
    table = BatchTable(4, 256, 1, BLOCK_SIZE, is_shared=True)
    scheduler = Scheduler(BlockManager([KVGroup(None, 14)], BLOCK_SIZE), 4, 24, table=table)
    inputs, num_steps = StepInputs(table), 0
    for index in range(7):
        each = sequence(index)
        scheduler.add(each, each.num_prompt_tokens + each.sampling_params.max_tokens)
    while scheduler.has_unfinished_sequences:
        step = scheduler.schedule()
        step_input = inputs.make(step)
        other_process.send(step_input.without_guests())
        scheduler.bookings.book(step)
        own = tiny.executor.execute(step_input).token_ids
        assert other_process.poll(60)
        assert other_process.recv() == own.tolist()
        scheduler.bookings.commit(step, own)
        for each in step.sequences:
            if each.num_output_tokens == each.sampling_params.max_tokens:
                scheduler.finish(each, FinishReason.LENGTH)
        scheduler.check_integrity()
        num_steps += 1
    assert num_steps > 20
    assert scheduler.num_preemptions > 0
    table.close()


def test_a_table_without_shared_memory_stays_in_its_process():
    table = BatchTable(2, 16)
    with pytest.raises(AssertionError, match="only a shared table"):
        table.__reduce__()
    table.close()


def test_numbers_that_no_token_reaches_fit_the_columns():
    table = BatchTable(1, 16)
    params = SamplingParams(max_tokens=2**40, min_tokens=2**40, stop_token_ids=(2**31, 7))
    table.add(Sequence("a", np.array([1]), 1, params, seed=0))
    assert table.stop_ids[0].tolist() == [7, -1, -1, -1]
    assert table.min_num_tokens[0] == 2**31 - 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_short_sequence_does_not_commit_the_memory_of_long_ones():
    before = resident_mib()
    table = BatchTable(256, 131_072)
    table.token_ids[:, 0] = 1
    assert resident_mib() - before < 16


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
