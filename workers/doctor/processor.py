"""Checks of the processor: its instruction sets, and the number of threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pagefleet.api.operate.doctor.finding import Finding, Target
from pagefleet.workers.doctor.cgroup import cpu_quota
from pagefleet.workers.settings import WorkerSettings, thread_variables

_CPU_INFO: Final = Path("/proc/cpuinfo")
_X86: Final = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
_ARM: Final = ("asimd", "sve", "bf16", "i8mm")


def features(target: Target) -> Iterable[Finding]:
    """Look for bf16 instructions: without them bf16 is slower than fp32."""
    is_arm = platform.machine() in ("aarch64", "arm64")
    interesting = _ARM if is_arm else _X86
    flags = cpu_flags()
    has = [name for name in interesting if name in flags]
    message = f"{platform.machine()} with {', '.join(has) or 'none of the instruction sets that matter'}"
    if not flags:
        yield Finding.skipped("processor", "this system does not report its instruction sets")
    elif interesting[0] not in flags:
        yield Finding.warning(
            "processor", message, f"use a processor with {interesting[0]}, which is several times faster"
        )
    elif not any("bf16" in name for name in has):
        yield Finding.warning(
            "processor", f"{message}, without bf16", "try PAGEFLEET_DTYPE=float32, which may be faster"
        )
    else:
        yield Finding.ok("processor", message)


def threads(target: Target) -> Iterable[Finding]:
    """Too many threads wait for each other; beyond a container's CPU quota the kernel stops all of them."""
    import torch

    settings = WorkerSettings.from_files()
    cores, quota = len(os.sched_getaffinity(0)), cpu_quota()
    usable = min(cores, quota) if quota is not None else cores
    num_threads = settings.num_threads or torch.get_num_threads()
    limit = f"; the container may use {quota:g}" if quota is not None and quota < cores else ""
    message = f"{num_threads} threads on {cores} cores{limit}"
    if num_threads > max(1, usable):
        fix = (
            f"set PAGEFLEET_NUM_THREADS={max(1, int(usable))}, divided by the number of workers on this host"
        )
        yield Finding.warning("threads", message, fix)
    else:
        yield Finding.ok("threads", message)
    policy = thread_variables()["OMP_WAIT_POLICY"]
    if (policy or "passive").lower() == "passive":
        yield Finding.ok("OMP_WAIT_POLICY", policy or "not set; workers set it to passive")
    else:
        yield Finding.warning(
            "OMP_WAIT_POLICY", f"{policy}: waiting threads occupy their cores", "set OMP_WAIT_POLICY=passive"
        )


def cpu_flags(file: Path = _CPU_INFO) -> frozenset[str]:
    """Return the instruction sets of the first processor; empty if the kernel does not list them."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
