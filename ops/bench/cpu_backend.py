"""Time decode steps and prompts of a model with the CPU backend and with the reference backend, in turn.

    GOMP_SPINCOUNT=10000 python ops/bench/cpu_backend.py [--model smollm2-135m-instruct] [--context 256]

A decode step is the plan, the model, the logits and the best token of each row, without scheduler and
sampler. The backends take turns, step by step, so that a neighbour slows both. "linears" are the packed
linears and the head alone: a decode step cannot be faster. Run it on an idle machine: there, threads that
spin while they wait are faster, and with a busy neighbour they are much slower (ops/decisions/0003).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from pagefleet.engine.backends.base import RaggedBatch
from pagefleet.engine.loading.checkpoint import resolve
from pagefleet.engine.models.model import Model
from pagefleet.engine.models.model_source import ModelSource

BACKENDS = ("reference", "cpu")
BLOCK_SIZE = 16
ROWS = (1, 8, 32, 64)
PROMPTS = (128, 512)


class Decode:
    """A model with `num_rows` sequences of `context` tokens in its cache."""

    def __init__(self, model: Model, num_rows: int, context: int) -> None:
        self._model, self._context = model, context
        width = context // BLOCK_SIZE + 1
        blocks = 1 + np.random.default_rng(0).permutation(num_rows * width)
        self._tables = np.repeat(blocks.reshape(1, num_rows, width), len(model.spec.kv_windows), axis=0)
        self._lens = np.ones(num_rows, dtype=np.int64)
        model.backend.allocate_kv_cache(
            model.spec, [num_rows * width + 1] * len(model.spec.kv_windows), BLOCK_SIZE
        )

    def prompt(self, row: int) -> None:
        """Compute the prompt of one row."""
        lens = np.array([self._context])
        self._forward(lens, np.zeros(1, dtype=np.int64), self._tables[:, row : row + 1])

    def step(self) -> torch.Tensor:
        """Compute the next token of each row, always at the same position."""
        return self._forward(self._lens, self._lens * self._context, self._tables)

    def _forward(self, lens: np.ndarray, contexts: np.ndarray, tables: np.ndarray) -> torch.Tensor:
        token_ids = np.random.default_rng(1).integers(0, self._model.spec.vocab_size, int(lens.sum()))
        plan = self._model.backend.begin_step(RaggedBatch(token_ids, lens, contexts, tables))
        rows = torch.from_numpy(np.cumsum(lens) - 1)
        return self._model.logits(self._model.forward(plan, rows)).argmax(-1)


def in_turn(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Call each in turn, for this long altogether; return the milliseconds of each call."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 3:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def linears(model: Model, num_rows: int) -> Callable[[], None]:
    """Return a call of all linears and the head on this many rows; all layers have the same sizes."""
    backend, weights = model.backend, model._weights  # type: ignore[attr-defined]
    hidden = torch.randn(num_rows, model.spec.hidden_size).to(backend.dtype)
    attention, mlp = weights.layers[0].spec.attention, weights.layers[0].mlp.spec
    heads = torch.randn(num_rows, attention.num_heads * attention.head_dim).to(backend.dtype)
    wide = torch.randn(num_rows, mlp.width).to(backend.dtype)

    def call() -> None:
        for layer in weights.layers:
            backend.linear(hidden, layer.qkv)
            backend.linear(heads, layer.output)
            backend.linear(hidden, layer.mlp.up)
            backend.linear(wide, layer.mlp.down)
        backend.logits(hidden, weights.head)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--context", type=int, default=256, help="Tokens before the decode step.")
    parser.add_argument("--seconds", type=float, default=6.0, help="Time of each line.")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    checkpoint = resolve(options.model)
    dtype, device = getattr(torch, options.dtype), torch.device("cpu")
    models = {
        name: ModelSource(checkpoint.folder, checkpoint.config, device, dtype, backend=name).load()
        for name in BACKENDS
    }
    waiting = {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    print(f"{models['cpu'].backend.name}, {options.dtype}, {torch.get_num_threads()} threads, {waiting}")
    with torch.inference_mode():
        print("milliseconds, median (best):")
        for num_rows in ROWS:
            decodes = {name: Decode(model, num_rows, options.context) for name, model in models.items()}
            for decode in decodes.values():
                for row in range(num_rows):
                    decode.prompt(row)
            calls: dict[str, Callable[[], object]] = {name: each.step for name, each in decodes.items()}
            calls["linears"] = linears(models["cpu"], num_rows)
            report(f"decode, {num_rows:2} rows", in_turn(calls, options.seconds), num_rows)
        for length in PROMPTS:
            decodes = {name: Decode(model, 1, length) for name, model in models.items()}
            calls = {name: lambda each=each: each.prompt(0) for name, each in decodes.items()}
            calls["linears"] = linears(models["cpu"], length)
            report(f"prompt of {length}", in_turn(calls, options.seconds), length)


def report(title: str, times: dict[str, list[float]], num_tokens: int) -> None:
    found = "   ".join(f"{name} {median(each):6.1f} ({min(each):6.1f})" for name, each in times.items())
    speed = num_tokens / median(times["cpu"]) * 1e3
    ratio = median(times["reference"]) / median(times["cpu"])
    print(f"{title:16} {found}   ratio {ratio:.2f}   {speed:.0f} tok/s")


if __name__ == "__main__":
    main()
