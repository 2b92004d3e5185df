"""Two libraries that turn a grammar into token masks, on the same schemas; ops/decisions has the result.

    python -m ops.bench.grammars llguidance|xgrammar|overlap [--every 4]

xgrammar is not a dependency: run `pip install xgrammar` first. Each schema gets a process, so that a
compilation that never ends affects only that schema.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

SCHEMAS: Final = Path(__file__).parents[2] / "tests" / "data" / "schemas"
MODEL: Final = "smollm2-135m-instruct"
VOCAB_SIZE, EOS = 49152, 2
NUM_TOKENS: Final = 40
LIMIT_S: Final = 30.0

Walk = tuple[float, list[float]]
"""Seconds to compile, to the first mask included; seconds of each mask after it."""


def with_llguidance(folder: Path) -> Callable[[str], Walk]:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    vocabulary = LLTokenizer(str(folder / "tokenizer.json"), n_vocab=VOCAB_SIZE, eos_token=EOS)
    mask = allocate_token_bitmask(1, VOCAB_SIZE)

    def walk(schema: str) -> Walk:
        begun_at = time.perf_counter()
        options = {"whitespace_flexible": False}
        matcher = LLMatcher(
            vocabulary, LLMatcher.grammar_from_json_schema(schema, overrides=options), log_level=0
        )
        if matcher.is_error():
            raise ValueError(matcher.get_error().splitlines()[0])
        return _walk(
            begun_at,
            lambda: fill_next_token_bitmask(matcher, mask),
            mask,
            lambda token_id: matcher.consume_token(token_id) and not matcher.is_stopped(),
        )

    return walk


def with_xgrammar(folder: Path) -> Callable[[str], Walk]:
    import tokenizers
    import xgrammar

    vocabulary = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    info = xgrammar.TokenizerInfo(
        sorted(vocabulary, key=lambda token: vocabulary[token]),
        vocab_type=xgrammar.VocabType.BYTE_LEVEL,
        vocab_size=VOCAB_SIZE,
        stop_token_ids=[EOS],
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)
    mask = xgrammar.allocate_token_bitmask(1, VOCAB_SIZE)

    def walk(schema: str) -> Walk:
        begun_at = time.perf_counter()
        compiled = compiler.compile_json_schema(schema, any_whitespace=False, strict_mode=False)
        matcher = xgrammar.GrammarMatcher(compiled)
        return _walk(
            begun_at,
            lambda: matcher.fill_next_token_bitmask(mask),
            mask.numpy(),
            lambda token_id: matcher.accept_token(token_id) and not matcher.is_terminated(),
        )

    return walk


def _walk(begun_at: float, fill: Callable[[], Any], mask: Any, accept: Callable[[int], bool]) -> Walk:
    """Random tokens of those allowed; the same seed each time."""
    rng, masks = random.Random(0), []
    fill()
    compiled_s = time.perf_counter() - begun_at
    for _ in range(NUM_TOKENS):
        allowed = np.flatnonzero(np.unpackbits(mask[0].view(np.uint8), bitorder="little"))
        if not accept(int(rng.choice(allowed))):
            break
        begun_at = time.perf_counter()
        fill()
        masks.append(time.perf_counter() - begun_at)
    return compiled_s, masks


def measure(library: str, every: int) -> None:
    from pagefleet.engine.loading.checkpoint import resolve

    make = {"llguidance": with_llguidance, "xgrammar": with_xgrammar}[library]
    walk = make(resolve(MODEL).folder)
    lines = (SCHEMAS / "real_world.jsonl").read_text(encoding="utf-8").splitlines()[::every]
    context = multiprocessing.get_context("fork")
    compiled, masks, failed = [], [], []
    for entry in map(json.loads, lines):
        schema = json.dumps(entry["schema"])
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_send, args=(sender, walk, schema))
        child.start()
        result: Any = receiver.recv() if receiver.poll(LIMIT_S) else f"more than {LIMIT_S:.0f} s"
        child.kill()
        child.join()
        if isinstance(result, str):
            failed.append(f"{entry['name']}: {result}")
            continue
        compiled.append(result[0])
        masks += result[1]
    print(f"{library}: {len(compiled)} of {len(lines)} schemas")
    print("compile, ms:", _spread(compiled), " mask, us:", _spread(masks, 1e6))
    print(*failed, sep="\n")


def _send(sender: Any, walk: Callable[[str], Walk], schema: str) -> None:
    try:
        sender.send(walk(schema))
    except (ValueError, RuntimeError) as error:
        sender.send(f"{type(error).__name__}: {error}")


def _spread(seconds: list[float], unit: float = 1e3) -> str:
    ordered = sorted(seconds)
    values = {"mean": statistics.mean(ordered), "p50": ordered[len(ordered) // 2]}
    values |= {"p90": ordered[len(ordered) * 9 // 10], "max": ordered[-1]}
    return ", ".join(f"{name} {value * unit:.1f}" for name, value in values.items())


def overlap(batch_size: int = 16, num_steps: int = 160) -> None:
    """Time the steps of one batch, with masks computed during and after the forward pass in turn."""
    from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, SamplingParams, StructuredOutput
    from pagefleet.engine.execution.token_masks import TokenMasks

    engine = LLMEngine.from_config(EngineConfig(model=MODEL, num_blocks=1000, max_step_s=60.0))
    wanted = StructuredOutput(json_schema={"type": "array", "items": {"type": "string"}, "minItems": 99})
    begin, compute = TokenMasks.start, TokenMasks._compute
    seconds: dict[str, list[float]] = {"beside": [], "after": [], "masks alone": []}
    is_late = False

    def start(self: Any, sequences: Any) -> Any:
        return (lambda: begin(self, sequences)()) if is_late else begin(self, sequences)  # type: ignore[misc]

    def timed(self: Any, *rest: Any) -> Any:
        begun_at = time.perf_counter()
        masks = compute(self, *rest)
        seconds["masks alone"].append(time.perf_counter() - begun_at)
        return masks

    TokenMasks.start, TokenMasks._compute = start, timed  # type: ignore[method-assign]
    for index in range(batch_size):
        params = SamplingParams(max_tokens=num_steps + 8, temperature=0.8, seed=index)
        grammar = engine.compile_grammar(wanted)
        engine.add_request(EngineRequest(f"{index}", [index + 100], params, grammar=grammar))
    for step in range(num_steps):
        is_late = step % 2 == 1
        begun_at = time.perf_counter()
        engine.step()
        seconds["after" if is_late else "beside"].append(time.perf_counter() - begun_at)
    for kind, values in seconds.items():
        print(f"batch {batch_size}, {kind}, ms: {_spread(values)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["llguidance", "xgrammar", "overlap"])
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "overlap":
        overlap()
    else:
        measure(arguments.what, arguments.every)


if __name__ == "__main__":
    sys.exit(main())
