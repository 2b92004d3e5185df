"""The tests of the CPU backend under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cpu_kernels import KERNELS_VARIABLE

ROOT = Path(__file__).parents[2]
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compile_sanitized(folder: Path) -> Path:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [extension] = project["tool"]["setuptools"]["ext-modules"]
    flags = [*extension["extra-compile-args"], *SANITIZERS, "-fPIC"]

    def compile_one(source: str) -> str:
        target = folder / Path(source).with_suffix(".o").name
        subprocess.run(["g++", "-c", *flags, "-o", target, ROOT / source], check=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, extension["sources"]))
    library = folder / "kernels.so"
    subprocess.run(["g++", "-shared", *SANITIZERS, "-o", library, *objects], check=True)
    return library


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_kernels_touch_no_memory_of_others(tmp_path):
    library = compile_sanitized(tmp_path)
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python's own allocator hides small objects from the sanitizer, and never frees some of them.
    environment = {
        **os.environ,
        KERNELS_VARIABLE: str(library),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "2",
    }
    # The comparisons of batches take most of the time and run the same code. -s shows the report.
    arguments = [
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        "-k",
        "not is_the_same",
        "tests/engine/test_cpu_backend.py",
    ]
    command = [sys.executable, "-m", "pytest", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout
