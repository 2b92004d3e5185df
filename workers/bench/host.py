"""The host's work for a decode step, without a model: in the engine's thread and in the one behind it."""

from __future__ import annotations

import json
import os
import queue
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, NullOptions, SamplingParams
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.execution.executor import StepResult
from pagefleet.engine.execution.null_executor import NullExecutor
from pagefleet.engine.execution.step_input import StepInput
from pagefleet.engine.execution.step_tracer import StepTracer
from pagefleet.engine.loading import null_loader
from pagefleet.engine.loading.checkpoint import resolve
from pagefleet.engine.requests.output_processor import StepTokens
from pagefleet.engine.text.hf_tokenizer import HFTokenizer
from pagefleet.workers.bench.machine import StealMeter, describe_machine, describe_versions

Progress = Callable[[str], None]

_WARM_UP: Final = 20
_BLOCK_SIZE: Final = 16
_MAX_BATCHED_TOKENS: Final = 8192
_PEER_TIMEOUT_S: Final = 900


class HostCase(NamedTuple):
    """A batch in which each sequence gets one token in each step."""

    num_seqs: int
    context_len: int
    goal_ms: float
    """How long the engine's thread may take for a step."""

    @property
    def name(self) -> str:
        return f"{self.num_seqs} x {self.context_len}"


CASES: Final = (HostCase(64, 512, 0.25), HostCase(256, 4096, 0.6), HostCase(1024, 512, 2.0))


_ROWS: Final = {
    "the engine's thread": "engine_ms",
    "  least": "engine_min_ms",
    "  goal": "goal_ms",
    "the output thread": "output_ms",
}


class _TimedNull(NullExecutor):
    """The null executor with a stopwatch: its made-up tokens are not the host's work."""

    model_s = 0.0

    def finish(self, step: StepInput) -> StepResult:
        begun_at = time.perf_counter()
        result = super().finish(step)
        self.model_s += time.perf_counter() - begun_at
        return result


class _StageTimer(StepTracer):
    """Notes how long each stage takes instead of writing a file."""

    def __init__(self) -> None:
        super().__init__(None, 0)
        self.seconds: dict[str, list[float]] = {}

    def span(self, name: str, **arguments: Any) -> AbstractContextManager[None]:
        return self._timed_stage(name)

    def step(self, scheduler_output: SchedulerOutput) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def _timed_stage(self, name: str) -> Iterator[None]:
        begun_at = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - begun_at)


class _Receiver:
    """The thread that turns each step's tokens into text, as the worker's publisher does."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        self._steps: queue.SimpleQueue[StepTokens | None] = queue.SimpleQueue()
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="receiver")
        self.durations: list[float] = []
        self._num_chars = 0
        self._thread.start()

    def put(self, tokens: StepTokens) -> None:
        self._steps.put(tokens)

    def wait(self) -> None:
        """Wait until the last step was received. On a real device, the model runs meanwhile."""
        self._is_done.wait()
        self._is_done.clear()

    def close(self) -> None:
        self._steps.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (tokens := self._steps.get()) is not None:
            begun_at = time.perf_counter()
            output = self._engine.process(tokens)
            self._num_chars += sum(map(len, output.texts))
            self.durations.append(time.perf_counter() - begun_at)
            self._is_done.set()


def run_host_bench(
    model: str, *, peer: Path, progress: Progress, num_steps: int = 300, cases: Sequence[HostCase] = CASES
) -> dict[str, Any]:
    """Measure decode steps of each case, and of vLLM's scheduler and output processor if `peer` exists.

    Args:
        model: the model whose tokenizer turns tokens into text.
        peer: the Python of an environment with vLLM.
    """
    meter = StealMeter()
    folder = resolve(model).folder
    figures = {}
    for case in cases:
        figures[case.name] = found = _measure(case, HFTokenizer(folder), num_steps)
        progress(f"{case.name}: {found['engine_ms']:.3f} ms in the engine's thread")
        theirs = _measure_peer(case, folder, num_steps, peer, progress)
        if theirs is not None:
            ours = found["engine_ms"] + found["output_ms"]
            found["vllm"] = theirs
            found["over_vllm"] = round(ours / theirs["total_ms"], 3)
    return {
        "cases": figures,
        "num_steps": num_steps,
        "stolen": meter.share(),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


def host_table(figures: dict[str, Any]) -> str:
    """Return the figures as a table: a row for each stage, a column for each case."""
    cases = list(figures["cases"].values())
    rows = [f"{'median of steps, in ms':<26}" + "".join(f"{name:>12}" for name in figures["cases"])]
    stages = dict.fromkeys(stage for case in cases for stage in case["stages_ms"])
    rows += [_row(f"  {stage}", [case["stages_ms"].get(stage) for case in cases]) for stage in stages]
    rows += [_row(name, [case[key] for case in cases]) for name, key in _ROWS.items()]
    if all("vllm" in case for case in cases):
        parts = cases[0]["vllm"]
        rows += [_row(f"vLLM {part[:-3]}", [case["vllm"][part] for case in cases]) for part in parts]
        rows.append(_row("ours / vLLM's (goal 0.5)", [case["over_vllm"] for case in cases]))
    return "\n".join(rows)


def _row(name: str, values: Sequence[float | None]) -> str:
    cells = ["" if value is None else f"{value:.3f}" for value in values]
    return f"{name:<26}" + "".join(f"{cell:>12}" for cell in cells)


def _measure(case: HostCase, tokenizer: HFTokenizer, num_steps: int) -> dict[str, Any]:
    engine, executor = _make_engine(case, tokenizer, num_steps)
    receiver = _Receiver(engine)
    try:
        _run_steps(engine, executor, receiver, _WARM_UP)
        receiver.durations.clear()
        steps = _run_steps(engine, executor, receiver, num_steps)
        output_ms = 1000 * statistics.median(receiver.durations)
        timer = _StageTimer()
        engine.tracer = executor.tracer = timer
        _run_steps(engine, executor, receiver, num_steps)
    finally:
        receiver.close()
        engine.close()
    stages = {name: 1000 * statistics.median(seconds) for name, seconds in timer.seconds.items()}
    return {
        "engine_ms": round(1000 * statistics.median(steps), 4),
        "engine_min_ms": round(1000 * min(steps), 4),
        "goal_ms": case.goal_ms,
        "output_ms": round(output_ms, 4),
        "stages_ms": {name: round(ms, 4) for name, ms in stages.items()},
    }


def _make_engine(case: HostCase, tokenizer: HFTokenizer, num_steps: int) -> tuple[LLMEngine, _TimedNull]:
    """Return an engine in which all sequences of the case have their first token."""
    num_output_tokens = 2 * (num_steps + _WARM_UP) + case.context_len
    max_model_len = case.context_len + num_output_tokens
    options = NullOptions(
        step_time_s=0.0,
        max_model_len=max_model_len,
        num_blocks=case.num_seqs * (max_model_len // _BLOCK_SIZE + 1),
    )
    config = EngineConfig(
        model="null",
        backend="null",
        block_size=_BLOCK_SIZE,
        max_num_seqs=case.num_seqs,
        max_num_batched_tokens=_MAX_BATCHED_TOKENS,
        num_speculative_tokens=0,
        null=options,
    )
    executor = _TimedNull(options)
    engine = LLMEngine(replace(null_loader.load(config), executor=executor, tokenizer=tokenizer), config)
    for index in range(case.num_seqs):
        # Prompts of different lengths fill their blocks in different steps.
        length = case.context_len - index % _BLOCK_SIZE
        prompt = [index // 250, index % 250, *(place * 7 % 250 for place in range(length - 2))]
        params = SamplingParams(max_tokens=num_output_tokens, ignore_eos=True, seed=index)
        engine.add_request(EngineRequest(f"request-{index}", prompt, params))
    while len(engine.step()) < case.num_seqs:
        pass
    return engine, executor


def _run_steps(engine: LLMEngine, executor: _TimedNull, receiver: _Receiver, num_steps: int) -> list[float]:
    """Return how long each step took in this thread, in seconds, without the model."""
    durations = []
    for _ in range(num_steps):
        model_s = executor.model_s
        begun_at = time.perf_counter()
        engine.submit(engine.schedule())
        receiver.put(engine.take())
        durations.append(time.perf_counter() - begun_at - (executor.model_s - model_s))
        receiver.wait()
    return durations


def _measure_peer(
    case: HostCase, folder: Path, num_steps: int, peer: Path, progress: Progress
) -> dict[str, float] | None:
    """Return vLLM's figures for the case, or None if it cannot be measured."""
    if not peer.exists():
        progress(f"{peer} is missing: run `make peers` to compare with vLLM")
        return None
    script = Path(__file__).with_name("vllm_host.py")
    numbers = [case.num_seqs, case.context_len, num_steps]
    command = [str(peer), str(script), str(folder), *map(str, numbers)]
    done = subprocess.run(
        command,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=_PEER_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        progress(f"vLLM cannot be measured: {done.stderr.strip().splitlines()[-1:]}")
        return None
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures
