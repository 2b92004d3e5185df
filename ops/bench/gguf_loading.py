"""Loading a GGUF model from its converted copy, against dequantising the GGUF file at every start.

    python -m ops.bench.gguf_loading FILE [--rounds 5]

Both ways run in turn, each time in a new process: cold (the kernel drops the file's pages first) and warm.
ops/decisions/0028 has the result. The direct reader is here only: the engine does not use it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pagefleet.engine.files.gguf.parts import read_gguf_parts
from pagefleet.engine.files.schemes.registry import read_quantization
from pagefleet.engine.files.weight_files import weight_paths
from pagefleet.engine.files.weight_reader import WeightReader
from pagefleet.engine.loading.checkpoint import resolve
from pagefleet.engine.loading.gguf.conversion import convert_gguf, plan_conversion


class DirectReader(WeightReader):
    """The tensors of a GGUF file, dequantised when they are taken."""

    def __init__(self, file: Path) -> None:
        header = read_gguf_parts(file).header
        self._folder = file
        self._quantization = read_quantization(None)
        self._tensors = plan_conversion(header).tensors
        self._dtype = getattr(torch, header.dtype)
        self._owners = dict.fromkeys(self._tensors, self)
        self._untaken = set(self._owners)

    def get_tensor(self, name: str) -> torch.Tensor:
        source = self._tensors[name]
        found = torch.empty(source.shape, dtype=self._dtype)
        rest = found.view(-1)
        for chunk in source.chunks():
            part = torch.from_numpy(chunk).reshape(-1)
            rest[: len(part)] = part
            rest = rest[len(part) :]
        return found


def load(reader: Callable[[Path], WeightReader], path: Path, sent: Any) -> None:
    """Take all tensors and copy them, as packing does; send the seconds and the memory."""
    wall, cpu = time.perf_counter(), time.process_time()
    weights = reader(path)
    kept = [weights.take(name).clone() for name in weights._owners]
    sent.put(
        {
            "wall_s": round(time.perf_counter() - wall, 2),
            "cpu_s": round(time.process_time() - cpu, 2),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            "weights_mib": sum(each.nbytes for each in kept) >> 20,
        }
    )


def convert(file: Path, target: Path, sent: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    convert_gguf(file, target)
    sent.put(
        {
            "wall_s": round(time.perf_counter() - wall, 2),
            "cpu_s": round(time.process_time() - cpu, 2),
            "added_peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10,
        }
    )


def in_process(target: Callable[..., None], *arguments: Any) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=target, args=(*arguments, queue))
    process.start()
    found: dict[str, float] = queue.get()
    process.join()
    return found


def drop_pages(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    folder = resolve(str(arguments.file)).folder
    [weights] = weight_paths(folder)
    ways = {"converted": (WeightReader, folder, weights), "direct": (DirectReader, *[arguments.file] * 2)}
    samples: dict[str, list[dict[str, float]]] = {}
    for _ in range(arguments.rounds):
        for name, (reader, path, data) in ways.items():
            drop_pages(data)
            for state in ("cold", "warm"):
                samples.setdefault(f"{name}, {state}", []).append(in_process(load, reader, path))
    target = folder.parent / ".bench"
    target.mkdir()
    conversion = in_process(convert, arguments.file, target)
    for file in target.iterdir():
        file.unlink()
    target.rmdir()
    sizes = {"gguf": arguments.file.stat().st_size >> 20, "converted": weights.stat().st_size >> 20}
    medians = {
        name: {measure: statistics.median(each[measure] for each in found) for measure in found[0]}
        for name, found in samples.items()
    }
    result = {"file": arguments.file.name, "disk_mib": sizes, "conversion": conversion, "medians": medians}
    print(json.dumps(result | {"samples": samples}, indent=1))


if __name__ == "__main__":
    main()
