"""Checks of this process and its host, as far as a producer is concerned."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from importlib.metadata import version
from platform import python_version
from typing import Final

from pagefleet.api.operate.doctor.finding import Finding, Patient

_FEW_FILES, _MANY_FILES = 256, 1024
_MEND: Final = "ulimit -n 65536, or LimitNOFILE= in its systemd unit"


def package(patient: Patient) -> Iterable[Finding]:
    files = ", ".join(map(str, type(patient.settings).files_read()))
    seen = f"pagefleet {version('pagefleet')}, Python {python_version()}"
    yield Finding.ok("package", f"{seen}, settings from the environment{f' and {files}' if files else ''}")


def open_files(patient: Patient) -> Iterable[Finding]:
    """A producer needs a few sockets, a worker some dozen, a service with a thread a request more."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} at most"
    if 0 <= soft < _FEW_FILES:
        yield Finding.wrong("open files", seen, _MEND)
    elif 0 <= soft < _MANY_FILES:
        yield Finding.warning("open files", seen, _MEND)
    else:
        yield Finding.ok("open files", seen)
