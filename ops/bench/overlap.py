"""What overlapped steps cost or save in process, on this machine's CPU; ops/decisions/0034 has the result.

python -m ops.bench.overlap [--rounds 3] [--backend reference]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from pagefleet.engine import EngineConfig, LLMEngine
from pagefleet.workers.bench.machine import describe_machine, describe_versions
from pagefleet.workers.bench.runs import run_in_process
from pagefleet.workers.bench.workload import Workload

MODEL = "smollm2-135m-instruct"


def measure(engine: LLMEngine, round_index: int) -> dict[str, float]:
    requests = Workload().requests(engine.info.vocab_size, round_index)
    begun_at = time.process_time()
    run = run_in_process(engine, requests)
    return {
        "tokens_per_s": run.timing.output_tok_s,
        "cpu_s": time.process_time() - begun_at,
        "stolen": run.stolen,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="reference")
    options = parser.parse_args()
    engines = {
        name: LLMEngine.from_config(
            EngineConfig(
                model=MODEL,
                dtype="bfloat16",
                backend=options.backend,
                num_speculative_tokens=0,
                overlap_steps=overlaps,
            )
        )
        for name, overlaps in (("one by one", False), ("overlapped", True))
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for index in range(options.rounds):
        # Alternated, so that a slow minute of the machine meets both.
        for name, engine in engines.items():
            found[name].append(measure(engine, index))
            print(name, found[name][-1], flush=True)
    rates = {name: [each["tokens_per_s"] for each in runs] for name, runs in found.items()}
    ratios = [two / one for one, two in zip(*rates.values(), strict=True)]
    result: dict[str, Any] = {
        "rounds": found,
        "overlapped_over_one_by_one": round(statistics.median(ratios), 3),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
