"""Checks of the processor: what it can compute with, and how many threads will do it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pagefleet.api.operate.doctor.finding import Finding, Patient
from pagefleet.workers.doctor.cgroup import cpu_quota
from pagefleet.workers.settings import WorkerSettings, thread_variables

_CPU_INFO: Final = Path("/proc/cpuinfo")
_X86: Final = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
_ARM: Final = ("asimd", "sve", "bf16", "i8mm")


def features(patient: Patient) -> Iterable[Finding]:
    """bf16 in hardware is what decides: without it bf16 is slower than fp32."""
    is_arm = platform.machine() in ("aarch64", "arm64")
    interesting = _ARM if is_arm else _X86
    flags = cpu_flags()
    has = [name for name in interesting if name in flags]
    seen = f"{', '.join(has) or 'none of note'} ({platform.machine()})"
    if not flags:
        yield Finding.skipped("processor", "this system does not say what it can do")
    elif interesting[0] not in flags:
        yield Finding.warning("processor", seen, f"a processor with {interesting[0]} is several times faster")
    elif not any("bf16" in name for name in has):
        yield Finding.warning("processor", f"{seen}: no bf16", "PAGEFLEET_DTYPE=float32 may be faster here")
    else:
        yield Finding.ok("processor", seen)


def threads(patient: Patient) -> Iterable[Finding]:
    """More threads than cores wait for each other, and beyond a container's quota all are stopped at once."""
    import torch

    settings = WorkerSettings.from_files()
    cores, quota = len(os.sched_getaffinity(0)), cpu_quota()
    usable = min(cores, quota) if quota is not None else cores
    num_threads = settings.num_threads or torch.get_num_threads()
    limit = f", of which the container gets {quota:g}" if quota is not None and quota < cores else ""
    seen = f"{num_threads} threads on {cores} cores{limit}"
    if num_threads > max(1, usable):
        mend = f"PAGEFLEET_NUM_THREADS={max(1, int(usable))} (divided by the workers on this host)"
        yield Finding.warning("threads", seen, mend)
    else:
        yield Finding.ok("threads", seen)
    policy = thread_variables()["OMP_WAIT_POLICY"]
    if (policy or "passive").lower() == "passive":
        yield Finding.ok("OMP_WAIT_POLICY", policy or "not set: a worker sets passive")
    else:
        yield Finding.warning(
            "OMP_WAIT_POLICY", f"{policy}: waiting threads hold their cores", "OMP_WAIT_POLICY=passive"
        )


def cpu_flags(file: Path = _CPU_INFO) -> frozenset[str]:
    """What the kernel says of the first processor."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
