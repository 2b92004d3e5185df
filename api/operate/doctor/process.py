"""Checks of this process that matter to a client: installed version, settings files, open files."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from importlib.metadata import version
from platform import python_version
from typing import Final

from pagefleet.api.operate.doctor.finding import Finding, Target

_FEW_FILES, _MANY_FILES = 256, 1024
_FIX: Final = "raise it: ulimit -n 65536, or LimitNOFILE=65536 in the systemd unit"


def package(target: Target) -> Iterable[Finding]:
    files = ", ".join(map(str, type(target.settings).files_read()))
    message = f"pagefleet {version('pagefleet')}, Python {python_version()}"
    yield Finding.ok("package", f"{message}, settings from the environment{f' and {files}' if files else ''}")


def open_files(target: Target) -> Iterable[Finding]:
    """A client needs a few sockets, a worker some dozens, a service with one thread per request more."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    message = "no limit" if soft == resource.RLIM_INFINITY else f"limit {soft:,}"
    if 0 <= soft < _FEW_FILES:
        yield Finding.error("open files", message, _FIX)
    elif 0 <= soft < _MANY_FILES:
        yield Finding.warning("open files", message, _FIX)
    else:
        yield Finding.ok("open files", message)
