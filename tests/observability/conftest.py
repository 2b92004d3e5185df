"""Fixtures of the tests around Prometheus; its programs are Debian's package ``prometheus``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(ROOT / "tests" / "workers"))


def find_program(name, give_up):
    """On the path, or where `make prometheus` unpacked it."""
    unpacked = ROOT / "build" / "prometheus" / "usr" / "bin" / name
    found = shutil.which(name) or (str(unpacked) if unpacked.exists() else None)
    if found is None:
        give_up(f"{name} is not here: Debian's package prometheus has it (make prometheus)", "prometheus")
    return found


@pytest.fixture(scope="session")
def promtool(give_up):
    return find_program("promtool", give_up)


@pytest.fixture(scope="session")
def prometheus(give_up):
    return find_program("prometheus", give_up)
