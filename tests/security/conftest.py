"""Fixtures of the security tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from guarded_server import GuardedServer


@pytest.fixture
def guarded(server_binary, tmp_path):
    with GuardedServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture(scope="module")
def guarded_for_all(server_binary, tmp_path_factory):
    with GuardedServer(tmp_path_factory.mktemp("guarded") / "redis") as server:
        yield server
