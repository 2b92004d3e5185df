"""CPU seconds of a process, by the name of its threads."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import psutil


def thread_times(pid: int) -> dict[str, float]:
    """Return user and system seconds by thread name. Threads with the same name are added up."""
    times: defaultdict[str, float] = defaultdict(float)
    for thread in psutil.Process(pid).threads():
        try:
            name = Path(f"/proc/{pid}/task/{thread.id}/comm").read_text().strip()
        except OSError:
            # The thread has ended, or the system has no /proc.
            name = "other"
        times[name] += thread.user_time + thread.system_time
    return times
