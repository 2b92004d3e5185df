"""The limits of this process's control group (a container), which most libraries ignore."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")


def cpu_quota(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> float | None:
    """Return the CPU limit in cores; None: no limit."""
    quotas = []
    for folder in _folders("cpu", root, membership):
        words = _read(folder / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            quotas.append(int(words[0]) / int(words[1]))
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota and period and int(quota) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> int | None:
    """Return the free bytes below the tightest memory limit; None: no limit."""
    left = []
    for folder in _folders("memory", root, membership):
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _read(folder / limit_file), _read(folder / used_file)
            # cgroup v1 represents "no limit" by a very large number.
            if limit.isdigit() and used.isdigit() and int(limit) < 2**60:
                left.append(max(0, int(limit) - int(used)))
    return min(left, default=None)


def _folders(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders of the group and its parents, whose limits apply too, for cgroup v2 and v1."""
    for line in _read(membership).splitlines():
        _number, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if controllers and controller not in names:
            continue
        base = root / controllers if controllers and (root / controllers).is_dir() else root
        if controllers and base == root:
            base = root / controller
        relative = Path(path.lstrip("/"))
        for part in (relative, *relative.parents):
            yield base / part


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
